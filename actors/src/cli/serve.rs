//! `millpond serve`: `qemu-storage-daemon`'s options, with its meaning and its texts.
//!
//! Two passes: the first looks for what must be known before anything is done, the second does what each
//! option says, strictly in order.

use super::arguments::{Name, ServeArgument, parse};
use super::background::{Background, Side, mask_files, split};
use super::filters::Filters;
use super::help::{self, SERVE};
use super::notify;
use super::objects;
use super::pidfile::Pidfile;
use super::runtime::control_thread;
use super::signals::{ENDED_AT_ONCE, Signals, record_at_usr1};
use super::texts::{VERSION, failed, failure};
use super::trace;
use crate::daemon::Daemon;
use crate::flight;
use crate::log::{self, LogOptions, tell};
use crate::monitor::chardev::{self, BACKENDS, Parsed};
use crate::qmp::{self, Commands};
use millpond_messages::qapi::schema::Structure;
use millpond_messages::qapi::{Options, QmpError, Validator};
use millpond_ring::os::process::{Preference, prefer_this_thread};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// How an option ended that did not fail.
enum Step {
    /// Go on with the next.
    Next,
    /// It printed what was asked for: end with success.
    Enough,
}

/// What the first pass found.
#[derive(Default)]
struct Plan {
    daemonize: bool,
    pidfile: Option<String>,
    grace: Option<Duration>,
    /// As the user has said.
    preference: Option<Preference>,
    filters: Filters,
    log: LogOptions,
    steps: Vec<ServeArgument>,
}

/// Runs the daemon; `program` is the name for error texts. `start` makes the daemon, on the control thread.
pub fn serve(program: &str, arguments: &[String], start: impl FnOnce() -> io::Result<Daemon>) -> ExitCode {
    let mut plan = match plan(program, arguments) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    let background = match plan.daemonize.then(split).transpose() {
        Ok(None) => None,
        Ok(Some(Side::Child(background))) => {
            mask_files();
            Some(background)
        }
        Ok(Some(Side::Parent(code))) => return code,
        Err(error) => return failure(program, &format!("cannot go to the background: {error}")),
    };
    let (filters, options) = (std::mem::take(&mut plan.filters), std::mem::take(&mut plan.log));
    if let Err(why) = trace::start(program, filters, options) {
        return failure(program, &why);
    }
    let system = match control_thread() {
        Ok(system) => system,
        Err(why) => return failure(program, &why),
    };
    if let Err(why) = prefer(plan.preference) {
        return failure(program, &why);
    }
    flight::record_panics();
    system.block_on(async {
        let begun = start().map_err(|error| format!("the main iothread cannot be started: {error}"));
        let begun = begun.and_then(|daemon| {
            let signals = Signals::catch().map_err(|error| format!("signals cannot be caught: {error}"))?;
            Ok((daemon, signals))
        });
        match begun {
            Ok((daemon, signals)) => run(program, &daemon, plan, background, signals).await,
            Err(why) => failure(program, &why),
        }
    })
}

/// The daemon's whole life, and its end.
async fn run(
    program: &str,
    daemon: &Daemon,
    plan: Plan,
    background: Option<Background>,
    mut signals: Signals,
) -> ExitCode {
    // The pidfile outlives the nodes, so that whoever waits for it to go finds everything flushed.
    let (code, _pidfile) = match live(program, daemon, plan, background, &mut signals).await {
        Ok(pidfile) if daemon.has_failed() => (ExitCode::FAILURE, pidfile),
        Ok(pidfile) => (ExitCode::SUCCESS, pidfile),
        Err(why) => (failure(program, &why), None),
    };
    let ended = tokio::select! {
        ended = daemon.shut_down() => ended,
        () = signals.second() => Err(QmpError::generic(ENDED_AT_ONCE)),
    };
    match ended {
        Ok(()) => code,
        Err(why) => failure(program, &why),
    }
}

/// The first pass: what is wrong is told before anything is started.
fn plan(program: &str, arguments: &[String]) -> Result<Plan, ExitCode> {
    let mut plan = Plan::default();
    let mut filters = Vec::new();
    for argument in parse(arguments) {
        let argument = argument.map_err(|why| failure(program, &why))?;
        match argument.name {
            Some(Name::Help) => {
                println!("Usage: {program} [options]\n{SERVE}");
                return Err(ExitCode::SUCCESS);
            }
            Some(Name::Version) => {
                println!("{program} {}", VERSION);
                return Err(ExitCode::SUCCESS);
            }
            Some(Name::Daemonize) => plan.daemonize = true,
            Some(Name::Pidfile) => plan.pidfile = Some(argument.value),
            Some(Name::ControlPriority) => {
                plan.preference = preference(&argument).map_err(|why| failure(program, &why))?;
            }
            Some(Name::ShutdownGrace) => match argument.value.parse() {
                Ok(seconds) => plan.grace = Some(Duration::from_secs(seconds)),
                Err(_) => {
                    let why = format!("{}: not a number of seconds", argument.typed);
                    return Err(failure(program, &why));
                }
            },
            Some(Name::Log) if LogOptions::is_help(&argument.value) => {
                print!("{}", LogOptions::HELP);
                return Err(ExitCode::SUCCESS);
            }
            Some(Name::Log) => {
                let typed = &argument.typed;
                plan.log = LogOptions::parse(&argument.value)
                    .map_err(|why| failure(program, &format!("{typed}: {why}")))?;
            }
            Some(Name::Trace) if !trace::is_help(&argument.value) => {
                filters.push((argument.typed, argument.value))
            }
            _ => plan.steps.push(argument),
        }
    }
    plan.filters = Filters::parse(filters).map_err(|why| failed(&format!("{program}:{why}")))?;
    Ok(plan)
}

/// Has the scheduler treat the control thread, which this is, as the user wants it; or well, where this process may have that.
fn prefer(asked: Option<Preference>) -> Result<(), String> {
    match (asked, prefer_this_thread(asked.unwrap_or_default())) {
        (Some(_), Err(error)) => Err(format!("the control thread cannot have that priority: {error}")),
        (None, Err(_)) | (_, Ok(())) => Ok(()),
    }
}

fn preference(argument: &ServeArgument) -> Result<Option<Preference>, String> {
    match argument.value.as_str() {
        "normal" => Ok(Some(Preference::None)),
        "nice" => Ok(Some(Preference::Nice)),
        "realtime" => Ok(Some(Preference::Realtime)),
        _ => Err(format!("{}: not normal, nice or realtime", argument.typed)),
    }
}

/// The second pass, and then the daemon's life until it is asked to end.
async fn live(
    program: &str,
    daemon: &Daemon,
    plan: Plan,
    background: Option<Background>,
    signals: &mut Signals,
) -> Result<Option<Pidfile>, String> {
    if let Some(grace) = plan.grace {
        daemon.set_grace(grace);
    }
    record_at_usr1(daemon).map_err(|error| format!("signals cannot be caught: {error}"))?;
    let done = tokio::select! {
        done = second_pass(program, daemon, &plan) => done?,
        // An option may wait for a client: that can be ended too.
        () = signals.next() => Step::Enough,
    };
    if matches!(done, Step::Enough) {
        return Ok(None);
    }
    let pidfile = plan.pidfile.as_deref().map(Pidfile::write).transpose();
    let pidfile = pidfile.map_err(|why| format!("cannot create PID file: {why}"))?;
    // What the start had to tell goes to whoever started it, and is there before a monitor greets anybody.
    log::finish();
    let moved = background.is_some();
    if let Some(background) = background {
        background
            .detach()
            .map_err(|error| format!("cannot go to the background: {error}"))?;
    }
    daemon.open_monitors();
    notify::ready(daemon, "Serving".to_owned(), moved).await;
    tokio::select! {
        () = signals.next() => {}
        () = daemon.asked_to_quit() => {}
    }
    notify::stopping().await;
    Ok(pidfile)
}

async fn second_pass(program: &str, daemon: &Daemon, plan: &Plan) -> Result<Step, String> {
    daemon.exports().hold_clients(true);
    for argument in &plan.steps {
        match step(program, daemon, plan, argument).await {
            Ok(Step::Next) => {}
            Ok(Step::Enough) => return Ok(Step::Enough),
            Err(error) => {
                let hint = error.hint.as_deref().map(|hint| format!("\n{hint}"));
                return Err(format!("{}: {error}{}", argument.typed, hint.unwrap_or_default()));
            }
        }
    }
    daemon.exports().hold_clients(false);
    Ok(Step::Next)
}

async fn step(
    program: &str,
    daemon: &Daemon,
    plan: &Plan,
    argument: &ServeArgument,
) -> Result<Step, QmpError> {
    let value = argument.value.as_str();
    match argument.name {
        Some(Name::Blockdev) => {
            if let Some(driver) = help_on(value, "driver")? {
                print!("{}", help::driver_options(driver.as_deref()));
                return Ok(Step::Enough);
            }
            qmp::node::add(daemon.clone(), checked(daemon, value, Some("driver"))?).await?;
        }
        Some(Name::Chardev) => return character(program, daemon, plan, argument).await,
        Some(Name::Export) => {
            if let Some(kind) = help_on(value, "type")? {
                print!("{}", help::export_options(kind.as_deref()));
                return Ok(Step::Enough);
            }
            qmp::export::add(daemon.clone(), checked(daemon, value, Some("type"))?).await?;
        }
        Some(Name::Monitor) => {
            let options = checked(daemon, value, Some("chardev"))?;
            daemon.add_monitor(&options, Commands::of(daemon))?;
        }
        Some(Name::NbdServer) => {
            qmp::export::start_server(daemon.clone(), &checked(daemon, value, None)?).await?;
        }
        Some(Name::Object) => {
            if objects::add(daemon, value).await? == objects::Added::Explained {
                return Ok(Step::Enough);
            }
        }
        Some(Name::Trace) => {
            print!("{}", trace::HELP);
            return Ok(Step::Enough);
        }
        None => return Err(QmpError::generic("Unexpected argument")),
        // The first pass took these.
        Some(
            Name::ControlPriority
            | Name::Daemonize
            | Name::Help
            | Name::Log
            | Name::Pidfile
            | Name::ShutdownGrace
            | Name::Version,
        ) => {}
    }
    Ok(Step::Next)
}

/// Whether an option's value asks for help, and on what: QEMU's daemon has none on these.
fn help_on(text: &str, key: &str) -> Result<Option<Option<String>>, QmpError> {
    let options = Options::parse(text, Some(key))?;
    let on = options.values.get(key).and_then(Value::as_str);
    Ok(options.help.then(|| on.map(str::to_owned)))
}

/// An option's value as the type that the option takes.
fn checked<T: Structure + DeserializeOwned>(
    daemon: &Daemon,
    text: &str,
    implied_key: Option<&str>,
) -> Result<T, QmpError> {
    let options = Options::parse_without_help(text, implied_key)?;
    Validator::new(options.form, daemon.extra_drivers()).check_as(options.values)
}

async fn character(
    program: &str,
    daemon: &Daemon,
    plan: &Plan,
    argument: &ServeArgument,
) -> Result<Step, QmpError> {
    let typed = &argument.typed;
    let warn = |text: String| tell(&format!("{program}: {typed}: warning: {text}"));
    let options = match chardev::parse(&argument.value, warn).map_err(QmpError::generic)? {
        Parsed::Device(options) => *options,
        Parsed::BackendHelp => {
            println!("Available chardev backend types: ");
            BACKENDS.iter().for_each(|name| println!("  {name}"));
            return Ok(Step::Enough);
        }
        Parsed::ParameterHelp => {
            print!("{}", chardev::parameter_help());
            return Ok(Step::Enough);
        }
    };
    if plan.daemonize && options.backend == chardev::Backend::Stdio {
        return Err(QmpError::generic("cannot use stdio with -daemonize"));
    }
    let waiting = |place: String| {
        tell(&format!(
            "{program}: {typed}: info: QEMU waiting for connection on: {place}"
        ))
    };
    let id = options.id.clone();
    if let Some(pty) = daemon.add_chardev(options, waiting).await? {
        println!("char device redirected to {pty} (label {id})");
    }
    Ok(Step::Next)
}
