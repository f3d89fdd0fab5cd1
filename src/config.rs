//! The command line and the environment, resolved into a configuration with every mistake told at once.

mod account;
mod check;
mod commands;
mod flags;
mod node;

use std::{fmt, io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

pub use self::{
    account::ControllerConfig,
    commands::{OrphansConfig, PreStopConfig},
    node::{NodeConfig, TaintConfig},
};
use self::{
    check::{Mistakes, OBJECT_NAME, base_url, given, is_driver_name, is_object_name, metrics_addresses, socket_path},
    commands::{resolve_orphans, resolve_pre_stop},
    flags::{Cli, LeaseFlags, Service},
};
use crate::cloud::{PROFILES, Profile};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The least grace period of a pod with which anything in it has time to end.
const SHORTEST_GRACE: Duration = Duration::from_secs(15);
/// What is left of the grace period when the time of what is in flight is over: for a lease to be given back (5 s), and for
/// the last spans (3 s).
pub const LAST_OF_GRACE: Duration = Duration::from_secs(10);

/// What the process is to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// Serve.
    Serve(Box<Config>),
    /// Report, and end.
    Orphans(OrphansConfig),
    /// Wait for a drain, and end.
    PreStop(PreStopConfig),
}

/// A configuration that has been checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The socket.
    pub endpoint: PathBuf,
    /// The cloud.
    pub profile: &'static Profile,
    /// The name told to Kubernetes.
    pub driver_name: String,
    /// The metadata service.
    pub metadata_url: String,
    /// The region given, in upper case.
    pub region: Option<String>,
    /// Where metrics are served.
    pub metrics_addrs: Vec<SocketAddr>,
    /// Where spans are sent.
    pub otlp_endpoint: Option<String>,
    /// The pod's grace period.
    pub grace: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
    /// The lease that the controller has to hold before it serves.
    pub lease: Option<String>,
    /// Set where the Controller service is served.
    pub controller: Option<ControllerConfig>,
    /// Set where the Node service is served.
    pub node: Option<NodeConfig>,
}

impl Config {
    /// Whether the Controller service is served.
    pub fn serves_controller(&self) -> bool {
        self.controller.is_some()
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, profile, driver_name, metadata_url, region, .. } = self;
        write!(f, "endpoint={} cloud={} driver={driver_name}", endpoint.display(), profile.name)?;
        write!(f, " metadata={metadata_url} region={}", region.as_deref().unwrap_or("from metadata"))?;
        if let Some(controller) = &self.controller {
            let rate = controller.requests_per_second;
            write!(f, " api={} rate={rate}/s token_file={}", controller.api_url, controller.token_file.display())?;
        }
        if let Some(lease) = &self.lease {
            write!(f, " lease={lease}")?;
        }
        if let Some(node) = &self.node {
            let (devices, sysfs) = (node.device_dir.display(), node.sysfs_dir.display());
            write!(f, " devices={devices} sysfs={sysfs} state={}", node.state_dir.display())?;
            if let Some(dir) = &node.kubelet_registration_dir {
                write!(f, " registration={}", dir.display())?;
            }
            if let Some(TaintConfig { node_name, key }) = &node.startup_taint {
                write!(f, " node={node_name} startup_taint={key}")?;
            }
        }
        Ok(())
    }
}

/// Reads the process's arguments and environment. Ends the process for `--help` and `--version`.
///
/// # Errors
/// All mistakes, a line each, in words for the operator.
pub fn parse() -> Result<Command, String> {
    let cli = Cli::try_parse().map_err(|error| if error.use_stderr() { error.to_string() } else { error.exit() })?;
    resolve(cli.service)
}

fn resolve(service: Service) -> Result<Command, String> {
    let no_lease = LeaseFlags { lease: None, pod_name: None };
    let (common, account, lease, node) = match service {
        Service::Orphans { account, orphans } => return resolve_orphans(account, orphans).map(Command::Orphans),
        Service::PreStop(flags) => return resolve_pre_stop(flags).map(Command::PreStop),
        Service::Controller { common, account, lease } => (common, Some(account), lease, None),
        Service::Node { common, node } => (common, None, no_lease, Some(node)),
        Service::All { common, account, node } => (common, Some(account), no_lease, Some(node)),
    };
    let mut mistakes = Mistakes(Vec::new());
    let profile = profile_named(&common.cloud, &mut mistakes);
    let endpoint = mistakes.unless(socket_path(&common.endpoint)).unwrap_or_default();
    let driver_name = driver_name(common.driver_name, profile, &mut mistakes);
    mistakes.unless(base_url("--metadata-url", &common.metadata_url));
    let region = given(common.region).map(|region| region.to_ascii_uppercase());
    if region.as_ref().is_some_and(|region| region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric())) {
        mistakes.add("--region", "give the code of a region, such as EWR");
    }
    let metrics_addrs = given(common.metrics_addr).and_then(|list| mistakes.unless(metrics_addresses(&list)));
    let otlp_endpoint = given(common.otlp_endpoint);
    if let Some(url) = &otlp_endpoint {
        mistakes.unless(base_url("--otlp-endpoint", url));
    }
    let grace = grace_period(common.grace, &mut mistakes);
    mistakes.unless(crate::telemetry::filter(&common.log_level));
    let log_format = common
        .log_format
        .unwrap_or_else(|| if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let lease = lease_of(lease, &mut mistakes);
    let controller = account.map(|flags| flags.resolve(profile, &mut mistakes));
    let node = node.map(|flags| flags.resolve(profile, &endpoint, &driver_name, &mut mistakes));
    if !mistakes.0.is_empty() {
        return Err(mistakes.0.join("\n"));
    }
    Ok(Command::Serve(Box::new(Config {
        endpoint,
        profile,
        driver_name,
        metadata_url: common.metadata_url,
        region,
        metrics_addrs: metrics_addrs.unwrap_or_default(),
        otlp_endpoint,
        grace,
        log_format,
        log_level: common.log_level,
        lease,
        controller,
        node,
    })))
}

/// The lease to be held. Without one, a pod that isn't the first of its StatefulSet is one too many.
fn lease_of(flags: LeaseFlags, mistakes: &mut Mistakes) -> Option<String> {
    let lease = given(flags.lease);
    if let Some(name) = lease.as_ref().filter(|name| !is_object_name(name)) {
        mistakes.add("--lease", &format!("'{name}' is not a name of a Kubernetes object ({OBJECT_NAME})"));
    }
    let pod = given(flags.pod_name).unwrap_or_default();
    let number = pod.rsplit_once('-').and_then(|(_, number)| number.parse::<u32>().ok());
    if lease.is_none() && number.is_some_and(|number| number > 0) {
        let problem = format!(
            "{pod} is one controller too many: without --lease there may be one. Scale the StatefulSet back to 1, or install \
             two with the chart's controller.replicas=2"
        );
        mistakes.add("--pod-name", &problem);
    }
    lease
}

/// The cloud of this name. The other mistakes are told too, as far as any cloud's facts can tell them.
fn profile_named(name: &str, mistakes: &mut Mistakes) -> &'static Profile {
    let profile = PROFILES.iter().find(|profile| profile.name == name).copied();
    profile.unwrap_or_else(|| {
        let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
        mistakes.add("--cloud", &format!("'{name}' is not known; the clouds are: {}", names.join(", ")));
        PROFILES[0]
    })
}

/// The driver's name.
fn driver_name(name: Option<String>, profile: &Profile, mistakes: &mut Mistakes) -> String {
    let name = given(name).unwrap_or_else(|| profile.driver_name.to_owned());
    if !is_driver_name(&name) {
        let rule = "letters, digits, dots and dashes, 63 at most, beginning and ending with a letter or digit";
        mistakes.add("--driver-name", &format!("'{name}' is not a CSI driver name ({rule})"));
    }
    name
}

/// The name of the machine's Node.
fn node_name(name: Option<String>, wanted_by: &str, mistakes: &mut Mistakes) -> String {
    let name = given(name).unwrap_or_default();
    if name.is_empty() {
        mistakes.add("--node-name", &format!("{wanted_by} needs the name of this machine's Node"));
    } else if !is_object_name(&name) {
        mistakes.add("--node-name", &format!("'{name}' is not a name of a Kubernetes object ({OBJECT_NAME})"));
    }
    name
}

/// The grace period of the process's pod.
fn grace_period(seconds: u32, mistakes: &mut Mistakes) -> Duration {
    let grace = Duration::from_secs(seconds.into());
    if grace < SHORTEST_GRACE {
        mistakes.add("--grace", &format!("give the pod's grace period, {} s or more", SHORTEST_GRACE.as_secs()));
    }
    grace
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let line = ["cloud-block-csi"].iter().chain(arguments);
        match resolve(Cli::try_parse_from(line).map_err(|error| error.to_string())?.service)? {
            Command::Serve(config) => Ok(*config),
            Command::Orphans(_) | Command::PreStop(_) => panic!("that serves nothing"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed_and_every_flag_has_its_variable() {
        use clap::CommandFactory;
        let cli = Cli::command();
        cli.clone().debug_assert();
        for service in cli.get_subcommands() {
            for flag in service.get_arguments().filter(|flag| flag.get_id() != "help") {
                let variable = format!("CSI_{}", flag.get_id().as_str().to_ascii_uppercase());
                assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
                assert!(flag.get_help().is_some(), "{variable} has no help");
            }
        }
    }

    #[test]
    fn a_node_needs_no_flag_and_gets_the_designs_defaults() {
        let config = config(&["node"]).unwrap();
        assert_eq!(config.endpoint, Path::new("/csi/csi.sock"));
        assert_eq!(config.driver_name, "block.csi.vultr.com");
        let node = config.node.unwrap();
        assert_eq!(node.state_dir, Path::new("/csi/state"));
        assert_eq!(node.device_dir, Path::new("/dev/disk/by-id"));
        assert!(config.controller.is_none());
    }

    #[test]
    fn kubernetes_is_spoken_to_only_where_a_flag_asks_for_it() {
        let controller = |flags: &[&str]| {
            config(&[&["controller", "--token-file=/token"], flags].concat()).map(|config| config.lease)
        };
        assert_eq!(controller(&[]).unwrap(), None);
        assert_eq!(controller(&["--lease="]).unwrap(), None);
        assert_eq!(controller(&["--lease=cloud-block-csi"]).unwrap().as_deref(), Some("cloud-block-csi"));
        assert!(controller(&["--lease=../nodes"]).unwrap_err().starts_with("--lease"));
        for alone in ["cloud-block-csi-controller-0", "cloud-block-csi-controller", "controller-7d9fb5c4f-x2x7q", ""] {
            assert_eq!(controller(&[&format!("--pod-name={alone}")]).unwrap(), None, "{alone}");
        }
        let second = "--pod-name=cloud-block-csi-controller-1";
        assert!(controller(&[second]).unwrap_err().contains("one controller too many"));
        assert_eq!(controller(&[second, "--lease=a"]).unwrap().as_deref(), Some("a"));

        let node =
            |flags: &[&str]| config(&[&["node"], flags].concat()).map(|config| config.node.unwrap().startup_taint);
        assert_eq!(node(&["--node-name=one"]).unwrap(), None);
        let taint = node(&["--node-name=one", "--startup-taint=example.com/agent-not-ready"]).unwrap().unwrap();
        assert_eq!((taint.node_name.as_str(), taint.key.as_str()), ("one", "example.com/agent-not-ready"));
        assert!(node(&["--startup-taint=not-ready"]).unwrap_err().starts_with("--node-name"));
        assert!(node(&["--startup-taint=a b", "--node-name=one"]).unwrap_err().starts_with("--startup-taint"));
    }

    #[test]
    fn the_hook_needs_its_node_and_a_grace_period_with_time_in_it() {
        let hook = |flags: &[&str]| {
            let line = ["cloud-block-csi", "pre-stop"].iter().chain(flags);
            match resolve(Cli::try_parse_from(line).unwrap().service)? {
                Command::PreStop(config) => Ok(config),
                other => panic!("{other:?}"),
            }
        };
        let PreStopConfig { node_name, driver_name, grace } = hook(&["--node-name=one", "--grace=120"]).unwrap();
        assert_eq!((node_name.as_str(), driver_name.as_str()), ("one", "block.csi.vultr.com"));
        assert_eq!(grace, Duration::from_secs(120));
        let mistakes: String = hook(&["--grace=14"]).unwrap_err();
        assert!(mistakes.contains("--node-name") && mistakes.contains("--grace"), "{mistakes}");
    }

    #[test]
    fn a_report_of_orphans_needs_a_list_or_the_word_that_it_is_empty() {
        let report = |flags: &[&str]| {
            let line = ["cloud-block-csi", "orphans", "--token-file=/token"].iter().chain(flags);
            match resolve(Cli::try_parse_from(line).map_err(|error| error.to_string())?.service)? {
                Command::Orphans(config) => Ok::<_, String>(config.in_use),
                other => panic!("{other:?}"),
            }
        };
        assert!(report(&[]).unwrap_err().contains("--in-use"));
        assert!(report(&["--in-use=known", "--nothing-in-use"]).is_err());
        assert_eq!(report(&["--in-use=known"]).unwrap().as_deref(), Some(Path::new("known")));
        assert_eq!(report(&["--nothing-in-use"]).unwrap(), None);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes = config(&[
            "all",
            "--endpoint=tcp://0.0.0.0:1",
            "--driver-name=-x",
            "--api-url=https://user:secret@api.vultr.com/v2",
            "--requests-per-second=30",
            "--node-id=node-1",
            "--max-volumes-per-node=0",
            "--metrics-addr=here",
            "--region=new york",
            "--otlp-endpoint=http://collector:4318/v1/traces",
            "--kubelet-registration-dir=plugins_registry",
        ])
        .unwrap_err();
        for flag in [
            "--endpoint",
            "--driver-name",
            "--api-url",
            "--requests-per-second",
            "--node-id",
            "--max-volumes-per-node",
            "--metrics-addr",
            "--region",
            "--otlp-endpoint",
            "--token-file",
            "--kubelet-registration-dir",
        ] {
            assert!(mistakes.lines().any(|line| line.starts_with(flag)), "{flag} is not in\n{mistakes}");
        }
    }

    #[test]
    fn metrics_may_have_several_addresses_and_ipv6_with_brackets_or_without() {
        for (list, wanted) in [
            ("0.0.0.0:9808", &["0.0.0.0:9808"][..]),
            ("[::]:9808", &["[::]:9808"]),
            ("127.0.0.1:9808,10.0.0.3:9808", &["127.0.0.1:9808", "10.0.0.3:9808"]),
            ("127.0.0.1:9808,2001:db8::5:9808", &["127.0.0.1:9808", "[2001:db8::5]:9808"]),
        ] {
            let wanted: Vec<SocketAddr> = wanted.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(metrics_addresses(list), Ok(wanted));
        }
        for list in ["9808", ":9808", "10.0.0.3", "1:2:3:4:5:6:7:8", "127.0.0.1:9808,", "node:9808", "::1:98080"] {
            assert!(metrics_addresses(list).is_err(), "{list}");
        }
    }

    #[test]
    fn a_socket_is_given_as_a_url_or_a_path() {
        for endpoint in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(socket_path(endpoint).unwrap(), Path::new("/csi/csi.sock"));
        }
        assert!(socket_path(&format!("/{}", "a".repeat(107))).is_err());
    }
}
