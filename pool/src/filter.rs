//! Conditions on GPUs and servers: `gpu.name=H100`, `gpu.memory>=40GiB`, `cuda.version>=12.4`.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{GpuFacts, ServerFacts};

/// One condition. Its text form is what people type and what travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter {
    field: Field,
    relation: Relation,
    value: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Field {
    GpuName,
    GpuUuid,
    GpuMemory,
    GpuSm,
    ServerName,
    ServerKind,
    ServerRdma,
    ServerSwitch,
    CudaVersion,
    DriverVersion,
}

/// How it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Relation {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
    Above,
    Below,
}

const FIELDS: [(&str, Field); 10] = [
    ("gpu.name", Field::GpuName),
    ("gpu.uuid", Field::GpuUuid),
    ("gpu.memory", Field::GpuMemory),
    ("gpu.sm", Field::GpuSm),
    ("server.name", Field::ServerName),
    ("server.kind", Field::ServerKind),
    ("server.rdma", Field::ServerRdma),
    ("server.switch", Field::ServerSwitch),
    ("cuda.version", Field::CudaVersion),
    ("driver.version", Field::DriverVersion),
];

/// Longest first, so that `>=` is not taken for `>`.
const RELATIONS: [(&str, Relation); 6] = [
    ("!=", Relation::NotEqual),
    (">=", Relation::AtLeast),
    ("<=", Relation::AtMost),
    ("=", Relation::Equal),
    (">", Relation::Above),
    ("<", Relation::Below),
];

/// Longest value.
const VALUE_BYTES_MAX: usize = 128;

impl Filter {
    /// Whether a GPU of a server is as wanted. A name is wanted in part and in any case of letters.
    #[must_use]
    pub fn matches(&self, server: &ServerFacts, gpu: &GpuFacts) -> bool {
        let has = |text: &str| self.has(text);
        match self.field {
            Field::GpuName => has(&gpu.name),
            Field::GpuUuid => has(&gpu.uuid),
            Field::ServerName => self.is(&server.name),
            Field::ServerKind => self.is(&server.kind),
            Field::ServerRdma => self.is(if server.rdma { "true" } else { "false" }),
            Field::ServerSwitch => has(&server.switch),
            Field::GpuMemory => {
                bytes(&self.value).is_some_and(|wanted| self.order(gpu.memory_bytes.cmp(&wanted)))
            }
            Field::GpuSm => self.order(numbers(&decimal(gpu.sm)).cmp(&numbers(&self.value))),
            Field::CudaVersion => {
                self.order(numbers(&server.cuda_version).cmp(&numbers(&self.value)))
            }
            Field::DriverVersion => {
                self.order(numbers(&server.driver_version).cmp(&numbers(&self.value)))
            }
        }
    }

    fn has(&self, text: &str) -> bool {
        let found = text
            .to_lowercase()
            .contains(self.value.to_lowercase().as_str());
        found == (self.relation == Relation::Equal)
    }

    fn is(&self, text: &str) -> bool {
        text.eq_ignore_ascii_case(&self.value) == (self.relation == Relation::Equal)
    }

    fn order(&self, order: Ordering) -> bool {
        match self.relation {
            Relation::Equal => order.is_eq(),
            Relation::NotEqual => order.is_ne(),
            Relation::AtLeast => order.is_ge(),
            Relation::AtMost => order.is_le(),
            Relation::Above => order.is_gt(),
            Relation::Below => order.is_lt(),
        }
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['=', '!', '<', '>']).ok_or_else(|| {
            format!("{text:?} has no comparison; write for example gpu.name=H100")
        })?;
        let (name, rest) = text.split_at(at);
        let found = FIELDS.iter().find(|(known, _)| *known == name.trim());
        let Some((_, field)) = found else {
            let names: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "{:?} cannot be asked for; {} can",
                name.trim(),
                names.join(", ")
            ));
        };
        let relation = RELATIONS.iter().find(|(sign, _)| rest.starts_with(sign));
        let Some((sign, relation)) = relation else {
            return Err(format!("{rest:?}: a comparison is one of = != >= <= > <"));
        };
        let value = rest.get(sign.len()..).unwrap_or_default().trim();
        let filter = Self {
            field: *field,
            relation: *relation,
            value: value.to_owned(),
        };
        filter.checked(text)
    }
}

impl Filter {
    fn checked(self, text: &str) -> Result<Self, String> {
        let ordered = !matches!(self.relation, Relation::Equal | Relation::NotEqual);
        if self.value.is_empty() || self.value.len() > VALUE_BYTES_MAX {
            return Err(format!("{text:?}: the value is empty or too long"));
        }
        let numeric = match self.field {
            Field::GpuMemory if bytes(&self.value).is_none() => {
                return Err(format!("{text:?}: write a size, for example 40GiB"));
            }
            Field::GpuMemory => true,
            Field::GpuSm | Field::CudaVersion | Field::DriverVersion => {
                if numbers(&self.value).is_empty() {
                    return Err(format!("{text:?}: write a version, for example 12.4"));
                }
                true
            }
            Field::ServerRdma if !["true", "false"].contains(&self.value.as_str()) => {
                return Err(format!("{text:?}: it is true or false"));
            }
            _ => false,
        };
        if ordered && !numeric {
            return Err(format!("{text:?}: a text is only equal (=) or not (!=)"));
        }
        Ok(self)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = FIELDS.iter().find(|(_, field)| *field == self.field);
        let relation = RELATIONS.iter().find(|(_, sign)| *sign == self.relation);
        write!(
            f,
            "{}{}{}",
            field.map_or("", |(name, _)| name),
            relation.map_or("", |(sign, _)| sign),
            self.value
        )
    }
}

impl TryFrom<String> for Filter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.to_string()
    }
}

/// `12.4` as `[12, 4]`, without zeros at the end; empty where that is no version.
fn numbers(text: &str) -> Vec<u64> {
    let parts: Option<Vec<u64>> = text.split('.').map(|part| part.parse().ok()).collect();
    let mut parts = parts.unwrap_or_default();
    while parts.len() > 1 && parts.last() == Some(&0) {
        parts.pop();
    }
    parts
}

fn decimal(sm: u32) -> String {
    format!("{}.{}", sm / 10, sm % 10)
}

/// `40GiB`, `512M` or a number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Filter;
    use crate::model::{GpuFacts, ServerFacts};

    fn facts() -> ServerFacts {
        let gpu = GpuFacts {
            uuid: "GPU-1".into(),
            name: "NVIDIA H100 80GB HBM3".into(),
            memory_bytes: 80 << 30,
            sm: 90,
            healthy: true,
        };
        ServerFacts {
            name: "a1".into(),
            addresses: Vec::new(),
            kind: "cuda".into(),
            rdma: true,
            driver_version: "580.95".into(),
            cuda_version: "12.4".into(),
            switch: "hall1/rack2".into(),
            version: "0.1.0".into(),
            tls: String::new(),
            gpus: vec![gpu],
        }
    }

    #[test]
    fn what_matches() {
        let server = facts();
        let matches = |text: &str| {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
            filter.matches(&server, &server.gpus[0])
        };
        for yes in [
            "gpu.name=h100",
            "gpu.name!=A100",
            "gpu.memory>=80GiB",
            "gpu.memory<90G",
            "gpu.sm>=9.0",
            "gpu.sm=9",
            "server.name=A1",
            "server.kind!=soft",
            "server.rdma=true",
            "server.switch=rack2",
            "cuda.version>=12.4",
            "cuda.version>12.3.9",
            "cuda.version<12.10",
            "driver.version>=580",
            " gpu.sm > 8.9",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "gpu.name=A100",
            "gpu.memory>80GiB",
            "server.name=a",
            "server.rdma=false",
            "cuda.version>=12.10",
            "cuda.version=12",
            "gpu.sm<9",
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        for (text, why) in [
            ("gpu.name", "no comparison"),
            ("gpu.colour=red", "gpu.name, gpu.uuid"),
            ("gpu.name>=H100", "only equal"),
            ("gpu.memory>=many", "a size"),
            ("cuda.version>=new", "a version"),
            ("server.rdma=yes", "true or false"),
            ("gpu.name=", "empty"),
            ("gpu.name!H100", "one of ="),
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
