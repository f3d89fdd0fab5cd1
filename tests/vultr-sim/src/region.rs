//! Vultr's regions and which of them have which kind of block storage (list of 2026-10).

use crate::volume::BlockType;

/// A region.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) id: &'static str,
    pub(crate) city: &'static str,
    pub(crate) country: &'static str,
    pub(crate) continent: &'static str,
}

/// The regions with `NVMe` volumes; all but one have HDD volumes.
const HIGH_PERF: [&str; 11] = ["ams", "atl", "blr", "ewr", "lax", "lhr", "nrt", "ord", "sea", "sgp", "syd"];
/// The region without HDD volumes.
const NO_STORAGE_OPT: &str = "syd";

#[rustfmt::skip]
pub(crate) const REGIONS: [Region; 33] = [
    region("ams", "Amsterdam", "NL", "Europe"),
    region("atl", "Atlanta", "US", "North America"),
    region("blr", "Bangalore", "IN", "Asia"),
    region("bom", "Mumbai", "IN", "Asia"),
    region("cdg", "Paris", "FR", "Europe"),
    region("del", "Delhi NCR", "IN", "Asia"),
    region("dfw", "Dallas", "US", "North America"),
    region("ewr", "New Jersey", "US", "North America"),
    region("fra", "Frankfurt", "DE", "Europe"),
    region("hnl", "Honolulu", "US", "North America"),
    region("icn", "Seoul", "KR", "Asia"),
    region("itm", "Osaka", "JP", "Asia"),
    region("jnb", "Johannesburg", "ZA", "Africa"),
    region("lax", "Los Angeles", "US", "North America"),
    region("lhr", "London", "GB", "Europe"),
    region("mad", "Madrid", "ES", "Europe"),
    region("man", "Manchester", "GB", "Europe"),
    region("mel", "Melbourne", "AU", "Australia"),
    region("mex", "Mexico City", "MX", "North America"),
    region("mia", "Miami", "US", "North America"),
    region("mxp", "Milan", "IT", "Europe"),
    region("nrt", "Tokyo", "JP", "Asia"),
    region("ord", "Chicago", "US", "North America"),
    region("sao", "São Paulo", "BR", "South America"),
    region("scl", "Santiago", "CL", "South America"),
    region("sea", "Seattle", "US", "North America"),
    region("sgp", "Singapore", "SG", "Asia"),
    region("sjc", "Silicon Valley", "US", "North America"),
    region("sto", "Stockholm", "SE", "Europe"),
    region("syd", "Sydney", "AU", "Australia"),
    region("tlv", "Tel Aviv", "IL", "Asia"),
    region("waw", "Warsaw", "PL", "Europe"),
    region("yto", "Toronto", "CA", "North America"),
];

const fn region(id: &'static str, city: &'static str, country: &'static str, continent: &'static str) -> Region {
    Region { id, city, country, continent }
}

impl Region {
    /// Finds a region; the API ignores case, since Vultr's own driver sends what the metadata service gave it.
    pub(crate) fn find(id: &str) -> Option<&'static Self> {
        REGIONS.iter().find(|r| r.id.eq_ignore_ascii_case(id))
    }

    /// Whether volumes of this type exist here.
    pub(crate) fn has(&self, block_type: BlockType) -> bool {
        match block_type {
            BlockType::HighPerf => HIGH_PERF.contains(&self.id),
            BlockType::StorageOpt => self.id != NO_STORAGE_OPT,
        }
    }

    /// The region's `options` in the API.
    pub(crate) fn options(&self) -> Vec<&'static str> {
        let mut options = vec!["ddos_protection"];
        if self.has(BlockType::HighPerf) {
            options.push("block_storage_high_perf");
        }
        if self.has(BlockType::StorageOpt) {
            options.push("block_storage_storage_opt");
        }
        options.extend(["load_balancers", "kubernetes"]);
        options
    }
}
