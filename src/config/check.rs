//! What single values of the configuration have to look like.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use crate::registration;

/// A variable that is set to nothing, as templates leave them, is not given.
pub(super) fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// The mistakes found so far.
pub(super) struct Mistakes(pub(super) Vec<String>);

impl Mistakes {
    pub(super) fn add(&mut self, flag: &str, problem: &str) {
        self.0.push(format!("{flag}: {problem}"));
    }

    pub(super) fn unless<T>(&mut self, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|mistake| self.0.push(mistake)).ok()
    }
}

pub(super) fn socket_path(endpoint: &str) -> Result<PathBuf, String> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    // sockaddr_un holds 108 bytes with the final NUL.
    if path.starts_with('/') && !path.ends_with('/') && path.len() < 108 {
        return Ok(PathBuf::from(path));
    }
    Err(format!("--endpoint: '{endpoint}' is not the address of a unix socket; give unix:///path (107 bytes at most)"))
}

/// The socket that the kubelet is to find in `dir`.
pub(super) fn registration_socket(dir: &Path, driver_name: &str) -> Result<(), String> {
    let socket = registration::socket(dir, driver_name);
    if dir.is_absolute() && socket.as_os_str().len() < 108 {
        return Ok(());
    }
    Err(format!(
        "--kubelet-registration-dir: give an absolute path, such as /var/lib/kubelet/plugins_registry; with the \
         socket's name it may have 107 bytes at most ({})",
        socket.display()
    ))
}

/// Scheme and host only: a path, a query or a user in it is a mistake that would send the token astray.
pub(super) fn base_url(flag: &str, url: &str) -> Result<(), String> {
    let parsed = split_scheme(url).filter(|(scheme, rest)| {
        matches!(*scheme, "http" | "https")
            && !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
    });
    parsed.map(drop).ok_or_else(|| format!("{flag}: '{url}' is not scheme and host, such as https://api.example.com"))
}

fn split_scheme(url: &str) -> Option<(&str, &str)> {
    url.trim_end_matches('/').split_once("://")
}

/// CSI 1.13, `GetPluginInfoResponse.name`.
pub(super) fn is_driver_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= 63
        && edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-')
}

/// What [`is_object_name`] asks for, in words.
pub(super) const OBJECT_NAME: &str = "lower-case letters, digits, dots and dashes, 253 at most";

/// A DNS subdomain, which the names of most objects of Kubernetes are; they become a part of a path.
pub(super) fn is_object_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A name of at most 63 characters, perhaps with a DNS subdomain and a slash before it.
pub(super) fn is_taint_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    prefix.is_none_or(is_object_name)
        && name.len() <= 63
        && edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Addresses with ports. An IPv6 address needs no brackets: a pod is told its node's without them.
pub(super) fn metrics_addresses(list: &str) -> Result<Vec<SocketAddr>, String> {
    let one = |text: &str| {
        let bare = || {
            let (address, port) = text.rsplit_once(':')?;
            Some(SocketAddr::from((address.parse::<Ipv6Addr>().ok()?, port.parse::<u16>().ok()?)))
        };
        let parsed = text.parse().ok().or_else(bare);
        parsed.ok_or_else(|| format!("--metrics-addr: '{text}' is not an address and a port"))
    };
    list.split(',').map(one).collect()
}
