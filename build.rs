//! Compiles the files of `proto/` with protox, so that a build needs no `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["csi.proto", "pluginregistration.proto"], ["proto"])?;
    // Messages that carry secrets get no `Debug`: no log line can ever print them.
    let secret: Vec<String> = descriptors
        .file
        .iter()
        .flat_map(|file| file.message_type.iter().map(move |message| (file.package(), message)))
        .filter(|(_, message)| message.field.iter().any(|field| field.name() == "secrets"))
        .map(|(package, message)| format!(".{package}.{}", message.name()))
        .collect();
    tonic_prost_build::configure()
        .build_transport(false)
        // In a fixed order, so that a repeated call is answered with the same bytes.
        .btree_map(".")
        .skip_debug(&secret)
        .compile_fds(descriptors)?;
    Ok(())
}
