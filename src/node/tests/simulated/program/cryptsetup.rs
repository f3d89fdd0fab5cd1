//! cryptsetup, as far as the driver uses it.

use std::path::Path;

use super::{CutOff, Formatted, Program, State, ended, well};
use crate::node::host::Output;

/// cryptsetup(8): the exit codes.
const WRONG_KEY: i32 = 2;
const NO_DEVICE: i32 = 4;
const BUSY: i32 = 5;

impl Program {
    pub(super) async fn cryptsetup(&self, arguments: &[String]) -> Result<Output, CutOff> {
        let last = arguments.last().expect("a device or a name").as_str();
        let before_last = &arguments[arguments.len() - 2];
        match arguments[0].as_str() {
            "luksFormat" => {
                let uuid = arguments.windows(2).find(|pair| pair[0] == "--uuid").expect("the driver chooses it");
                self.luks_format(Path::new(last), &uuid[1]).await
            }
            "open" => self.open(Path::new(before_last), last).await,
            "close" => self.close(last, before_last == "--deferred").await,
            "resize" => self.resize(last).await,
            other => panic!("cryptsetup {other}"),
        }
    }

    fn key(&self) -> &[u8] {
        self.key.as_deref().expect("the key comes through the pipe")
    }

    async fn luks_format(&self, node: &Path, uuid: &str) -> Result<Output, CutOff> {
        self.step().await?;
        let Some(claim) = self.claim(node, Formatted::Encryption) else {
            return Ok(ended(BUSY, String::new(), "is in use"));
        };
        for stage in 0..3 {
            self.step().await?;
            let State { kernels, images, .. } = &mut *self.shared.lock().unwrap();
            let Some(image) = claim.content(&kernels[self.machine], images) else {
                return Ok(ended(1, String::new(), "input/output error"));
            };
            match stage {
                0 => image.write(32 << 10, &[0x5a; 4096]),
                1 => image.write_second_header(uuid),
                _ => image.encrypt(uuid, self.key()),
            }
        }
        Ok(well())
    }

    async fn open(&self, node: &Path, name: &str) -> Result<Output, CutOff> {
        self.step().await?;
        let state = &mut *self.shared.lock().unwrap();
        let kernel = &mut state.kernels[self.machine];
        let image = kernel.disk_at(node).map(|disk| &mut state.images[disk.image]);
        let Some(image) = image.filter(|image| image.encryption().is_some()) else {
            return Ok(ended(1, String::new(), "is not a valid LUKS device"));
        };
        if image.unlock().is_none_or(|payload| payload.key != self.key()) {
            return Ok(ended(WRONG_KEY, String::new(), "no key available with this passphrase"));
        }
        if kernel.mapping(name).is_some() {
            return Ok(ended(BUSY, String::new(), "already exists"));
        }
        state.attached += 1;
        Ok(match kernel.map(name, node, state.attached) {
            Ok(()) => well(),
            Err(_) => ended(BUSY, String::new(), "is in use"),
        })
    }

    async fn close(&self, name: &str, later: bool) -> Result<Output, CutOff> {
        self.step().await?;
        let kernel = &mut self.shared.lock().unwrap().kernels[self.machine];
        if kernel.mapping(name).is_none() {
            return Ok(ended(NO_DEVICE, String::new(), "is not active"));
        }
        Ok(if kernel.unmap(name, later).is_ok() { well() } else { ended(BUSY, String::new(), "is still in use") })
    }

    async fn resize(&self, name: &str) -> Result<Output, CutOff> {
        self.step().await?;
        let State { kernels, images, .. } = &mut *self.shared.lock().unwrap();
        let Some(mapping) = kernels[self.machine].mapping(name) else {
            return Ok(ended(NO_DEVICE, String::new(), "is not active"));
        };
        let image = &mut images[mapping.image];
        if image.payload.as_ref().is_none_or(|payload| payload.key != self.key()) {
            return Ok(ended(WRONG_KEY, String::new(), "no key available with this passphrase"));
        }
        image.unlock();
        Ok(well())
    }
}
