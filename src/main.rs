//! The program: parse, log, run, and an exit code that says who has to act.

use std::process::ExitCode;

use cloud_block_csi::{
    RunError,
    config::{self, Command, LogFormat},
    kubernetes, orphans, run, server,
    telemetry::{self, Place},
};

/// `EX_USAGE` of sysexits.h: the configuration has to be changed.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let command = match config::parse() {
        Ok(command) => command,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let (place, log_format, log_level, otlp_endpoint) = match &command {
        Command::Serve(config) => {
            (Place::Stderr, config.log_format, config.log_level.as_str(), config.otlp_endpoint.as_deref())
        }
        Command::Orphans(_) => (Place::Stderr, LogFormat::Text, "warn", None),
        Command::PreStop(_) => (Place::Container, LogFormat::Json, "warn,cloud_block_csi=info", None),
    };
    let traces = match telemetry::start(place, log_format, log_level, otlp_endpoint) {
        Ok(traces) => traces,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    // Two threads, however many processors a node has: the work is waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(async {
                match command {
                    Command::Serve(config) => run(*config, server::stop_signal()?).await,
                    Command::Orphans(config) => orphans::report(config).await,
                    Command::PreStop(config) => kubernetes::drain::pre_stop(config).await,
                }
            });
            // A thread that hangs in a system call on a dead disk is not waited for.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(RunError::Failed(format!("no runtime: {error}"))),
    };
    // Outside of the runtime: it blocks.
    traces.end();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "ended");
            ExitCode::from(if matches!(error, RunError::Configuration(_)) { BAD_CONFIGURATION } else { 1 })
        }
    }
}
