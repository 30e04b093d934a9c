//! One device as NVML describes it.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

/// What the server says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) server_ordinal: u32,
    pub(crate) name: String,
    pub(crate) uuid: [u8; 16],
    /// Compute capability times ten.
    pub(crate) sm: u32,
    pub(crate) pci_domain: u32,
    pub(crate) pci_bus: u32,
    pub(crate) pci_device: u32,
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
}

/// Bytes of device memory, as a program may see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

impl Device {
    /// `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    pub(crate) fn uuid_text(&self) -> String {
        let mut text = "GPU".to_owned();
        for (index, byte) in self.uuid.iter().enumerate() {
            if matches!(index, 0 | 4 | 6 | 8 | 10) {
                text.push('-');
            }
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// `00000000:41:00.0`.
    pub(crate) fn bus_id(&self) -> String {
        format!(
            "{:08X}:{:02X}:{:02X}.0",
            self.pci_domain, self.pci_bus, self.pci_device
        )
    }

    /// `0000:41:00.0`.
    pub(crate) fn bus_id_legacy(&self) -> String {
        format!(
            "{:04X}:{:02X}:{:02X}.0",
            self.pci_domain, self.pci_bus, self.pci_device
        )
    }

    /// Whether `text` names this device's place: with or without domain and function.
    pub(crate) fn is_at(&self, text: &str) -> bool {
        let place = text.split_once('.').map_or(text, |(place, _)| place);
        let mut numbers = place
            .rsplit(':')
            .map(|part| u32::from_str_radix(part, 16).ok());
        let device = numbers.next().flatten();
        let bus = numbers.next().flatten();
        let domain = match numbers.next() {
            Some(domain) => domain,
            None => Some(0),
        };
        numbers.next().is_none()
            && (domain, bus, device)
                == (
                    Some(self.pci_domain),
                    Some(self.pci_bus),
                    Some(self.pci_device),
                )
    }

    /// Memory under the limit that the program was given, the same as `cuMemGetInfo` will show.
    pub(crate) fn memory(&self, limit_bytes: Option<u64>) -> Memory {
        let total = limit_bytes.map_or(self.total_bytes, |limit| limit.min(self.total_bytes));
        let free = self.total_bytes.saturating_sub(self.used_bytes).min(total);
        Memory {
            total,
            free,
            used: total.saturating_sub(free),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, Memory};

    fn device() -> Device {
        Device {
            server_ordinal: 0,
            name: "x".to_owned(),
            uuid: *b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10",
            sm: 90,
            pci_domain: 1,
            pci_bus: 0x41,
            pci_device: 0x1f,
            total_bytes: 100,
            used_bytes: 30,
        }
    }

    #[test]
    fn texts() {
        assert_eq!(
            device().uuid_text(),
            "GPU-01020304-0506-0708-090a-0b0c0d0e0f10"
        );
        assert_eq!(device().bus_id(), "00000001:41:1F.0");
        assert_eq!(device().bus_id_legacy(), "0001:41:1F.0");
    }

    #[test]
    fn place() {
        for text in ["00000001:41:1F.0", "0001:41:1f.0", "1:41:1f"] {
            assert!(device().is_at(text), "{text}");
        }
        for text in ["41:1f.0", "0:1:41:1f", "1:41:1e", "", ":", "x:41:1f"] {
            assert!(!device().is_at(text), "{text}");
        }
    }

    #[test]
    fn memory_under_a_limit() {
        assert_eq!(
            device().memory(None),
            Memory {
                total: 100,
                free: 70,
                used: 30
            }
        );
        assert_eq!(
            device().memory(Some(50)),
            Memory {
                total: 50,
                free: 50,
                used: 0
            }
        );
        assert_eq!(
            device().memory(Some(80)),
            Memory {
                total: 80,
                free: 70,
                used: 10
            }
        );
        assert_eq!(
            device().memory(Some(500)),
            Memory {
                total: 100,
                free: 70,
                used: 30
            }
        );
    }
}
