//! Runs `fio` on a file, past the page cache.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::tools::Tool;
use crate::Outcome;

/// A load on a file.
#[derive(Debug)]
pub struct Load<'a> {
    /// The engine of `fio` that makes the requests.
    pub engine: &'a str,
    /// What they are, as the option `rw` has it.
    pub work: &'a str,
    /// Bytes of a request.
    pub block: u64,
    /// How many are in flight of each job.
    pub depth: u32,
    /// How many make them at once, each on processors of its own.
    pub jobs: u32,
    /// For how many seconds, after a short while that does not count.
    pub seconds: f64,
    /// The file that they go to.
    pub file: &'a Path,
}

/// Carries a load out, and gives what `fio` prints.
///
/// # Errors
/// It is not installed, or has failed.
pub fn run(load: &Load<'_>) -> Outcome<Vec<u8>> {
    let output = Command::new(Tool::Fio.program())
        .args(["--name=load", "--direct=1", "--time_based", "--thread"])
        .args(["--ramp_time=300ms", "--output-format=json"])
        .arg(format!("--ioengine={}", load.engine))
        .arg(format!("--rw={}", load.work))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .args(["--group_reporting", &format!("--numjobs={}", load.jobs)])
        .args(split(load.jobs))
        .arg(format!("--runtime={}ms", (load.seconds * 1000.0).ceil()))
        .arg(format!("--filename={}", load.file.display()))
        .output()
        .map_err(|error| format!("{error}: {}", Tool::Fio.missing()))?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}

/// What has jobs run on processors of their own.
fn split(jobs: u32) -> Vec<String> {
    match jobs {
        0 | 1 => Vec::new(),
        jobs => vec![
            format!("--cpus_allowed=0-{}", jobs - 1),
            "--cpus_allowed_policy=split".to_owned(),
        ],
    }
}

/// The figures of one kind of work, `read` or `write`, in what `fio` prints.
///
/// # Errors
/// It is not what `fio` prints.
pub fn figures(output: &[u8], kind: &str) -> Outcome<Value> {
    // Notes may stand before the JSON.
    let start = output
        .iter()
        .position(|byte| *byte == b'{')
        .ok_or("fio printed no JSON")?;
    let value: Value = serde_json::from_slice(output.get(start..).unwrap_or_default())?;
    Ok(value["jobs"][0][kind].clone())
}

/// How many requests a second those are.
///
/// # Errors
/// They do not say.
pub fn rate(figures: &Value) -> Outcome<f64> {
    figures["iops"].as_f64().ok_or_else(|| "fio tells no rate".into())
}
