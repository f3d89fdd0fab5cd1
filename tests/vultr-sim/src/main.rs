//! `vultr-sim`: the simulated cloud as a process, for tests in other languages. One line of JSON says that it is ready.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use vultr_sim::{Config, InstanceSpec, Simulation};

/// A simulated Vultr cloud with real disks. Prints one line of JSON when it is ready and ends on SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// The folder for disks and instance trees; a new temporary one by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// An instance, as LABEL:REGION or LABEL:REGION:METADATA-PORT; may be repeated.
    #[arg(long = "instance", value_name = "LABEL:REGION[:PORT]", value_parser = instance)]
    instances: Vec<InstanceSpec>,
    /// A JSON list of more instances: objects with `label` and `region`, and if wanted `metadata_port`, `address`, and
    /// `qmp`, the monitor's socket of a qemu guest.
    #[arg(long = "instances", value_name = "FILE")]
    instance_list: Option<PathBuf>,
    /// Where a metadata service listens that knows each instance by its `address`, for example 169.254.169.254:80.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metadata_listen: Option<SocketAddr>,
    /// The virtiofsd that serves file systems to qemu guests; by default one of the usual places.
    #[arg(long, value_name = "PATH")]
    virtiofsd: Option<PathBuf>,
    /// The address that all listeners bind to.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// The API's port; 0 picks one.
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// The control interface's port; 0 picks one.
    #[arg(long, default_value_t = 0)]
    control_port: u16,
    /// The API token that is accepted.
    #[arg(long)]
    token: Option<String>,
    /// The seed of all ids.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Simulate the API only: no files, no loop devices, no root needed.
    #[arg(long)]
    no_disks: bool,
    /// A behaviour, as in the control interface's /behaviour: `attach_ms=50`, `growth_seen_online=true`; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, Value)>,
    /// Detach every loop device whose file lies under this folder, print each, and end.
    #[arg(long, value_name = "DIR", exclusive = true)]
    sweep: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let ran = match &flags.sweep {
        Some(dir) => vultr_sim::sweep(dir).map(|swept| {
            for device in swept {
                println!("{}", device.display());
            }
        }),
        None => run(flags).await,
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vultr-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> io::Result<()> {
    // Before the start, so that a signal during it is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let simulation = Simulation::start(config(flags)?).await?;
    println!("{}", ready(&simulation));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    simulation.shutdown().await
}

fn config(flags: Flags) -> io::Result<Config> {
    let default = Config::default();
    let mut instances = flags.instances;
    if let Some(file) = &flags.instance_list {
        let text = fs::read(file).map_err(|error| named(file, &error))?;
        let listed: Vec<InstanceSpec> = serde_json::from_slice(&text).map_err(|error| named(file, &error.into()))?;
        instances.extend(listed);
    }
    let settings: Map<String, Value> = flags.settings.into_iter().collect();
    Ok(Config {
        dir: flags.dir.unwrap_or(default.dir),
        token: flags.token.unwrap_or(default.token),
        listen: flags.listen,
        api_port: flags.api_port,
        control_port: flags.control_port,
        metadata_listen: flags.metadata_listen,
        virtiofsd: flags.virtiofsd,
        instances,
        disks: !flags.no_disks,
        seed: flags.seed,
        behaviour: default.behaviour.changed(&Value::Object(settings))?,
    })
}

fn named(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

fn ready(simulation: &Simulation) -> Value {
    json!({
        "api": simulation.api_url(),
        "control": simulation.control_url(),
        "metadata": simulation.metadata_url(),
        "token": simulation.token(),
        "dir": simulation.dir(),
        "instances": simulation.instances(),
    })
}

fn instance(text: &str) -> Result<InstanceSpec, String> {
    let mut parts = text.split(':');
    let (Some(label), Some(region)) = (parts.next(), parts.next()) else {
        return Err("LABEL:REGION is wanted".to_owned());
    };
    let mut spec = InstanceSpec::new(label, region);
    if let Some(port) = parts.next() {
        spec.metadata_port = port.parse().map_err(|e| format!("{port}: {e}"))?;
    }
    Ok(spec)
}

fn setting(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is wanted")?;
    // What isn't JSON is a bare word, such as `detach`.
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}
