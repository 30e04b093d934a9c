//! The Container Device Interface, as far as it is written here: version 0.5.0 of its specification
//! (<https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>).
#![forbid(unsafe_code)]

use serde::Serialize;

/// The oldest version that has what is used here (names of devices that begin with a digit): engines refuse a file with a version
/// younger than themselves, whatever is in it. Podman 4.3 knows 0.5.0 and no younger one.
pub(super) const VERSION: &str = "0.5.0";
/// Vendor and class of the devices.
pub(super) const KIND: &str = "farcall.dev/gpu";

/// A file for a runtime.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) cdi_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) devices: Vec<Device>,
    /// For every device.
    pub(super) container_edits: Edits,
}

/// What `--device farcall.dev/gpu=NAME` means.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) container_edits: Edits,
}

/// What is changed about a container.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<Mount>,
}

/// A device file of the host.
#[derive(Debug, Serialize)]
pub(super) struct DeviceNode {
    pub(super) path: String,
}

/// A file or folder of the host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    pub(super) options: Vec<&'static str>,
}
