//! The generated code of `proto/csi.proto`. Only `rpc` and `server` speak it; the clients are for tests and the demo.
//!
//! A request that carries secrets cannot be printed:
//! ```compile_fail
//! println!("{:?}", cloud_block_csi::csi::NodeStageVolumeRequest::default());
//! ```
//! while others can:
//! ```
//! println!("{:?}", cloud_block_csi::csi::ProbeRequest::default());
//! ```

#![allow(missing_docs, unreachable_pub, rustdoc::all, clippy::all, clippy::pedantic)]

tonic::include_proto!("csi.v1");
