//! Writes the seeds of each fuzz target into a folder of its name in the folder that is given.

use std::path::PathBuf;

use millpond_tests::fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("Usage: fuzz_seeds FOLDER");
        std::process::exit(2);
    };
    for target in TARGETS {
        let folder = PathBuf::from(&folder).join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (index, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), seed)?;
        }
    }
    Ok(())
}
