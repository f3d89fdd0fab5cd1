//! Where is mounted: nowhere but where the kubelet asked, whatever links lie on the way.

use std::{fs, os::unix::fs::symlink};

use super::machine::{Machine, Said, volume};
use crate::{
    error::Error,
    node::{Publish, Stage},
    volume::FsType,
};

const EXT4_MIB: u64 = 64;

#[tokio::test]
async fn no_link_in_the_kubelets_directory_is_followed_and_nothing_outside_is_mounted_on() {
    let Some(mut machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    for directory in ["kubelet/pods/a", "elsewhere"] {
        fs::create_dir_all(machine.path(directory)).unwrap();
    }
    symlink(machine.path("elsewhere"), machine.path("kubelet/pods/out")).unwrap();
    symlink("a", machine.path("kubelet/pods/in")).unwrap();
    machine.restart_as(Said { kubelet_dir: Some(machine.path("kubelet")), ..Said::default() });
    let staging = machine.path("kubelet/plugins/staging");
    let stage = |path: &str| Stage { staging_path: machine.path(path), ..machine.stage_of(FsType::Ext4) };
    let publish = |path: &str| Publish { staging_path: staging.clone(), ..machine.publish_of(path, false) };
    machine.stage_as(stage("kubelet/plugins/staging")).await.unwrap();
    machine.node.publish(publish("kubelet/pods/a/mount")).await.unwrap();
    assert_eq!(machine.mounts().len(), 2);
    for path in ["kubelet/pods/out/mount", "kubelet/pods/in/mount", "kubelet/pods/out"] {
        let error = machine.node.publish(publish(path)).await.unwrap_err();
        assert!(matches!(&error, Error::Precondition(text) if text.contains("symbolic link")), "{path}: {error}");
        let error = machine.unpublish(path).await.unwrap_err();
        assert!(matches!(&error, Error::Precondition(_)), "{path}: {error}");
        let error = machine.stage_as(stage(path)).await.unwrap_err();
        assert!(matches!(&error, Error::Precondition(_)), "{path}: {error}");
    }
    let error = machine.node.publish(publish("elsewhere/mount")).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid { field, .. } if field == "target_path"), "{error}");
    assert!(matches!(machine.unpublish("elsewhere").await, Err(Error::Invalid { .. })));
    let error = machine.node.stats(volume(), machine.path("elsewhere")).await.unwrap_err();
    assert!(matches!(error, Error::NotMounted { .. }), "{error}");
    assert_eq!(machine.mounts().len(), 2);
    assert_eq!(fs::read_dir(machine.path("elsewhere")).unwrap().count(), 0);
    machine.unpublish("kubelet/pods/a/mount").await.unwrap();
    machine.node.unstage(volume(), staging).await.unwrap();
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
}

#[tokio::test]
async fn a_directory_that_is_a_link_is_where_it_leads_to() {
    let Some(mut machine) = Machine::new() else { return };
    machine.attach(EXT4_MIB);
    fs::create_dir_all(machine.path("disk/kubelet")).unwrap();
    symlink("disk/kubelet", machine.path("kubelet")).unwrap();
    for kubelet_dir in [None, Some(machine.path("kubelet"))] {
        machine.restart_as(Said { kubelet_dir, ..Said::default() });
        let staging = machine.path("kubelet/plugins/staging");
        for _ in 0..2 {
            let request = Stage { staging_path: staging.clone(), ..machine.stage_of(FsType::Ext4) };
            machine.stage_as(request).await.unwrap();
            let publish = machine.publish_of("kubelet/pods/mount", false);
            machine.node.publish(Publish { staging_path: staging.clone(), ..publish }).await.unwrap();
            machine.node.stats(volume(), machine.path("kubelet/pods/mount")).await.unwrap();
        }
        assert_eq!(machine.mounts().len(), 2);
        for _ in 0..2 {
            machine.unpublish("kubelet/pods/mount").await.unwrap();
            machine.node.unstage(volume(), staging.clone()).await.unwrap();
        }
        assert!(machine.mounts().is_empty() && machine.state().is_empty());
    }
}
