//! What `inspect` says about real cubins and PTX, against what NVIDIA's own tools say.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use farcall_marshal::image::{Arch, CodeKind, KernelInfo, ModuleInfo, inspect};

/// Kernel, ordinal: offset and size.
type Layouts = BTreeMap<(String, usize), (u32, u32)>;

const CUBINS: [(&str, &[u8]); 5] = [
    (
        "params_sm75.cubin",
        include_bytes!("../../fixtures/images/params_sm75.cubin"),
    ),
    (
        "params_sm90.cubin",
        include_bytes!("../../fixtures/images/params_sm90.cubin"),
    ),
    (
        "params_sm90_cuda118.cubin",
        include_bytes!("../../fixtures/images/params_sm90_cuda118.cubin"),
    ),
    (
        "params_sm120.cubin",
        include_bytes!("../../fixtures/images/params_sm120.cubin"),
    ),
    (
        "linked_sm90.cubin",
        include_bytes!("../../fixtures/images/linked_sm90.cubin"),
    ),
];
const PTX_SM75: &[u8] = include_bytes!("../../fixtures/images/params_sm75.ptx");
const PTX_SM90: &[u8] = include_bytes!("../../fixtures/images/params_sm90.ptx");

fn cubin(name: &str) -> ModuleInfo {
    let (_, bytes) = CUBINS.iter().find(|(file, _)| *file == name).unwrap();
    inspect(bytes).unwrap()
}

fn kernel<'a>(module: &'a ModuleInfo, name: &str) -> &'a KernelInfo {
    module.kernels.iter().find(|k| k.name == name).unwrap()
}

fn layouts(module: &ModuleInfo) -> Layouts {
    let mut layouts = Layouts::new();
    for kernel in &module.kernels {
        for (ordinal, spec) in kernel.params.iter().enumerate() {
            let place = (spec.offset_bytes, spec.size_bytes);
            layouts.insert((kernel.name.clone(), ordinal), place);
        }
    }
    layouts
}

/// What cuobjdump says: see `fixtures/images/build.sh`.
fn expected_layouts(file: &str) -> Layouts {
    let table = include_str!("../../fixtures/images/layouts.tsv");
    let hex = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let mut layouts = Layouts::new();
    for line in table.lines() {
        let [name, kernel, ordinal, offset, size] =
            line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        if name == file {
            let ordinal = usize::try_from(hex(ordinal)).unwrap();
            layouts.insert((kernel.to_owned(), ordinal), (hex(offset), hex(size)));
        }
    }
    assert!(!layouts.is_empty());
    layouts
}

#[test]
fn parameters_of_cubins_are_where_cuobjdump_has_them() {
    for (file, bytes) in CUBINS {
        let module = inspect(bytes).unwrap();
        assert_eq!(module.kind, CodeKind::Elf);
        assert_eq!(layouts(&module), expected_layouts(file), "{file}");
        assert!(module.kernels.iter().all(KernelInfo::has_layout));
    }
}

#[test]
fn ptx_and_cubin_of_one_source_agree() {
    for (ptx, file) in [
        (PTX_SM75, "params_sm75.cubin"),
        (PTX_SM75, "params_sm90_cuda118.cubin"),
        (PTX_SM75, "params_sm120.cubin"),
        (PTX_SM90, "params_sm90.cubin"),
    ] {
        let (text, code) = (inspect(ptx).unwrap(), cubin(file));
        assert_eq!(text.kind, CodeKind::Ptx);
        assert_eq!(layouts(&text), layouts(&code), "{file}");
        assert_eq!(text.const_bytes, code.const_bytes, "{file}");
        assert_eq!(text.kernels.len(), code.kernels.len());
        for in_text in &text.kernels {
            let in_code = kernel(&code, &in_text.name);
            assert_eq!(in_text.param_bytes, in_code.param_bytes, "{in_code:?}");
            assert_eq!(in_text.max_threads, in_code.max_threads, "{in_code:?}");
            assert_eq!(in_text.cluster, in_code.cluster, "{in_code:?}");
            let (text, code) = (in_text.resources, in_code.resources);
            assert_eq!(text.shared_static_bytes, code.shared_static_bytes);
            assert_eq!(text.local_bytes, code.local_bytes, "{}", in_text.name);
        }
        let globals = |module: &ModuleInfo| {
            let mut globals = module.globals.clone();
            globals.sort_by(|a, b| a.name.cmp(&b.name));
            globals
        };
        assert_eq!(globals(&text), globals(&code), "{file}");
    }
}

#[test]
fn kernels_say_what_they_need() {
    let module = cubin("params_sm90.cubin");
    assert_eq!(module.arch, Arch::portable(90));
    assert!(!module.relocatable);
    assert_eq!(module.const_bytes, 257);

    // As `cuobjdump -res-usage` has it, which counts the 1024 bytes that the system reserves.
    let shared = kernel(&module, "static_shared");
    assert_eq!(shared.resources.shared_static_bytes, 5248 - 1024);
    assert_eq!(shared.resources.registers, 14);
    assert_eq!(shared.resources.barriers, 1);
    assert_eq!(kernel(&module, "local_memory").resources.local_bytes, 256);
    assert_eq!(kernel(&module, "no_params").params, []);
    assert_eq!(kernel(&module, "no_params").param_bytes, 0);
    assert_eq!(kernel(&module, "four_kb").param_bytes, 4096);
    assert_eq!(kernel(&module, "beyond_four_kb").param_bytes, 0x2030);
    assert_eq!(kernel(&module, "bounded").max_threads, Some(256));
    assert_eq!(kernel(&module, "mixed").max_threads, None);

    let clustered = kernel(&module, "clustered_bounded");
    assert_eq!(clustered.cluster.required, Some([4, 1, 1]));
    assert!(clustered.cluster.explicit);
    assert_eq!(clustered.max_threads, Some(128));
    assert!(!kernel(&module, "bounded").cluster.explicit);
    assert_eq!((clustered.ptx_version, clustered.binary_version), (90, 90));
}

#[test]
fn the_virtual_architecture_is_known() {
    let versions = |file| {
        let module = cubin(file);
        let mixed = kernel(&module, "mixed");
        (mixed.ptx_version, mixed.binary_version)
    };
    assert_eq!(versions("params_sm75.cubin"), (75, 75));
    assert_eq!(versions("params_sm120.cubin"), (100, 120));
    assert_eq!(versions("params_sm90_cuda118.cubin"), (90, 90));
}

#[test]
fn older_cubins_say_as_much() {
    let module = cubin("params_sm90_cuda118.cubin");
    assert_eq!(module.arch, Arch::portable(90));
    let shared = kernel(&module, "static_shared");
    assert_eq!(shared.resources.shared_static_bytes, 4224);
    assert!(shared.resources.registers > 0);
    let shared = cubin("params_sm75.cubin");
    let shared = kernel(&shared, "static_shared");
    assert_eq!(shared.resources.shared_static_bytes, 4224);
}

#[test]
fn functions_of_a_linked_cubin_are_no_kernels() {
    let module = cubin("linked_sm90.cubin");
    let names: Vec<_> = module.kernels.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(names, ["caller", "second"]);
    let caller = kernel(&module, "caller");
    assert_eq!(caller.resources.local_bytes, 88);
    assert_eq!(caller.resources.shared_static_bytes, 32);
    assert_eq!(kernel(&module, "second").param_bytes, 2);
    assert_eq!(module.globals.len(), 1);
    let global = module.globals.first().unwrap();
    assert_eq!((global.name.as_str(), global.bytes), ("linked_global", 20));
}

#[test]
fn variables_of_every_space() {
    let module = cubin("params_sm75.cubin");
    let mut variables: Vec<_> = module
        .globals
        .iter()
        .map(|g| (g.name.as_str(), g.bytes, g.is_const, g.is_managed))
        .collect();
    variables.sort_unstable();
    assert_eq!(
        variables,
        [
            ("c_flag", 1, true, false),
            ("c_weights", 256, true, false),
            ("d_counter", 4, false, false),
            ("d_table", 80, false, false),
            ("m_value", 4, false, true),
        ]
    );
}
