//! What sizes there are.

use crate::{cloud::VolumeType, error::Error, volume::Gib};

/// The size that a request means in a cloud with these limits: rounded up to whole steps, raised to the minimum.
///
/// # Errors
/// [`Error::OutOfRange`] if that is more than the type has, or than the request allows.
pub(super) fn size_for(kind: &VolumeType, required_bytes: u64, limit_bytes: u64) -> Result<Gib, Error> {
    let asked = Gib::holding(required_bytes).max(kind.min);
    let size = Gib(asked.0.div_ceil(kind.step.0) * kind.step.0);
    if size > kind.max {
        return Err(Error::OutOfRange(format!(
            "{required_bytes} bytes are asked for, but a {kind} volume has at most {}",
            kind.max
        )));
    }
    if limit_bytes != 0 && size.bytes() > limit_bytes {
        return Err(Error::OutOfRange(format!(
            "the smallest {kind} volume that holds {required_bytes} bytes has {size}, which is over the limit of \
             {limit_bytes} bytes; sizes go from {} to {} in steps of {}",
            kind.min, kind.max, kind.step
        )));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::vultr::PROFILE;

    #[test]
    fn sizes_are_rounded_up_raised_and_limited() {
        const GIB: u64 = 1 << 30;
        let (nvme, hdd) = (PROFILE.volume_types[0], PROFILE.volume_types[1]);
        for (kind, required, limit, size) in [
            (nvme, 0, 0, Some(10)),
            (nvme, 1, 0, Some(10)),
            (nvme, 8 * GIB, 0, Some(10)),
            (nvme, 10 * GIB - 1, 10 * GIB, Some(10)),
            (nvme, 10 * GIB + 1, 0, Some(11)),
            (nvme, 10 * GIB + 1, 11 * GIB - 1, None),
            (nvme, 1, 8 * GIB, None),
            (nvme, 10_000 * GIB, 0, Some(10_000)),
            (nvme, 10_000 * GIB + 1, 0, None),
            (nvme, u64::MAX, 0, None),
            (hdd, 1, 0, Some(40)),
            (hdd, 40_000 * GIB, 0, Some(40_000)),
            (hdd, 40_001 * GIB, 0, None),
        ] {
            let found = size_for(kind, required, limit);
            assert_eq!(found.as_ref().ok().map(|size| size.0), size, "{kind} {required} {limit}: {found:?}");
            if let Err(error) = found {
                assert_eq!(error.code(), tonic::Code::OutOfRange);
            }
        }
    }
}
