//! Real fatbins: how long they are, what is in them, and what a device gets of them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use farcall_marshal::image::{
    Accepts, Arch, CodeKind, Compression, EntryKind, Extent, Form, Image, ImageError,
    ImageErrorClass, Selected, Target, Variant, extent, inspect, select,
};

const PLAIN: &[u8] = include_bytes!("../../fixtures/images/tiny_plain.fatbin");
const LZ4: &[u8] = include_bytes!("../../fixtures/images/tiny_lz4.fatbin");
const ZSTD: &[u8] = include_bytes!("../../fixtures/images/tiny_zstd.fatbin");
const GROUP: &[u8] = include_bytes!("../../fixtures/images/tiny_group.fatbin");
const FAMILY: &[u8] = include_bytes!("../../fixtures/images/tiny_family.fatbin");
const LTO: &[u8] = include_bytes!("../../fixtures/images/tiny_lto.fatbin");
const DEBUG: &[u8] = include_bytes!("../../fixtures/images/tiny_debug.fatbin");
const CUBIN: &[u8] = include_bytes!("../../fixtures/images/params_sm90.cubin");
const OLD_CUBIN: &[u8] = include_bytes!("../../fixtures/images/params_sm90_cuda118.cubin");
const PTX: &[u8] = include_bytes!("../../fixtures/images/params_sm75.ptx");

/// As the shim does it: a prefix that grows as asked.
fn extent_of(memory: &[u8]) -> Result<(Extent, usize), ImageError> {
    let mut wanted = 4;
    for calls in 1.. {
        match extent(&memory[..wanted])? {
            Extent::NeedMore(more) => {
                assert!(more > wanted, "no progress");
                wanted = more;
            }
            known => return Ok((known, calls)),
        }
    }
    unreachable!("the loop ends by returning")
}

fn target(sm: u32, accepts: Accepts) -> Target {
    Target { sm, accepts }
}

fn selected<'a>(image: &'a [u8], target: &Target) -> Result<Selected<'a>, ImageError> {
    select(&Image::open(image).unwrap(), target)
}

fn names(image: &[u8]) -> Vec<String> {
    let image = Image::open(image).unwrap();
    let name = |kind, arch: Arch| format!("{kind:?} {arch}");
    let entries = image.entries().iter();
    entries.map(|entry| name(entry.kind, entry.arch)).collect()
}

#[test]
fn images_know_their_length() {
    for (image, calls_max) in [
        (PLAIN, 2),
        (LZ4, 2),
        (ZSTD, 2),
        (GROUP, 2),
        (CUBIN, 3),
        (OLD_CUBIN, 3),
    ] {
        // Whatever follows in memory does not count.
        let memory = [image, &[0xa5; 100]].concat();
        let (found, calls) = extent_of(&memory).unwrap();
        assert_eq!(found, Extent::Total(image.len()));
        assert!(calls <= calls_max, "{calls}");
    }
    assert_eq!(extent_of(PTX).unwrap().0, Extent::Text);
    assert_eq!(extent(b"\n\n//"), Ok(Extent::Text));
    assert_eq!(extent(b"a\0"), Ok(Extent::Text));
}

#[test]
fn a_wrapper_points_to_its_image() {
    let mut wrapper = Vec::new();
    wrapper.extend_from_slice(&0x4662_43b1_u32.to_le_bytes());
    wrapper.extend_from_slice(&2_u32.to_le_bytes());
    wrapper.extend_from_slice(&0x7fff_1234_5678_u64.to_le_bytes());
    wrapper.extend_from_slice(&0x1000_u64.to_le_bytes());
    let expected = Extent::Wrapper {
        data_ptr: 0x7fff_1234_5678,
        version: 2,
        filename_ptr: 0x1000,
    };
    assert_eq!(extent_of(&wrapper).unwrap(), (expected, 2));
    assert!(matches!(
        Image::open(&wrapper),
        Err(ImageError::Unsupported { .. })
    ));
}

#[test]
fn what_is_no_image_is_refused() {
    let class = |bytes: &[u8]| extent(bytes).unwrap_err().class();
    assert_eq!(class(&[0; 64]), ImageErrorClass::InvalidImage);
    assert_eq!(class(&[0xff; 64]), ImageErrorClass::InvalidImage);
    assert_eq!(class(b"BC\xc0\xde...."), ImageErrorClass::InvalidSource);
    assert_eq!(
        class(b"\xed\x43\x4e\x7f..."),
        ImageErrorClass::InvalidSource
    );
    // A program for the host.
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(class(&own), ImageErrorClass::InvalidSource);
    assert!(Image::open(&own).is_err());
    // Text, but not PTX.
    let error = Image::open(b"int main() {}\0").unwrap_err();
    assert_eq!(error.class(), ImageErrorClass::InvalidPtx);
}

#[test]
fn fatbins_list_what_they_have() {
    let expected = [
        "Ptx sm_75",
        "Elf sm_75",
        "Elf sm_80",
        "Elf sm_90a",
        "Elf sm_120",
        "Ptx sm_120",
    ];
    for (image, compression) in [
        (PLAIN, Compression::None),
        (LZ4, Compression::Lz4),
        (ZSTD, Compression::Zstd),
    ] {
        assert_eq!(names(image), expected);
        let image = Image::open(image).unwrap();
        assert_eq!(image.form(), Form::Fatbin);
        for entry in image.entries() {
            assert_eq!(entry.compression, compression);
        }
    }
    assert_eq!(names(FAMILY), ["Elf sm_100f", "Ptx sm_100f"]);
    assert_eq!(names(LTO), ["LtoIr sm_90"]);
    let mut grouped = names(GROUP);
    grouped.sort();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(grouped, expected);
}

#[test]
fn names_options_and_debug_marks_are_read() {
    let image = Image::open(DEBUG).unwrap();
    let entry = &image.entries()[1];
    assert_eq!(entry.kind, EntryKind::Ptx);
    assert_eq!(entry.name, "tiny.cu");
    assert_eq!(entry.options, "-g --dont-merge-basicblocks --return-at-end");
    assert!(entry.debug);
    let image = Image::open(PLAIN).unwrap();
    let entry = &image.entries()[0];
    assert_eq!((entry.name, entry.options, entry.debug), ("", "", false));
}

/// However it is stored, the same comes out.
#[test]
fn every_form_of_storing_expands_to_the_same() {
    let plain = Image::open(PLAIN).unwrap();
    for stored in [LZ4, ZSTD, GROUP] {
        let stored = Image::open(stored).unwrap();
        assert_eq!(stored.entries().len(), plain.entries().len());
        for entry in stored.entries() {
            let found = plain
                .entries()
                .iter()
                .find(|other| (other.kind, other.arch) == (entry.kind, entry.arch))
                .unwrap();
            let (expanded, expected) = (entry.expand().unwrap(), found.expand().unwrap());
            if entry.kind == EntryKind::Ptx {
                // The plain one has blank lines in front.
                assert_eq!(expanded.trim_ascii(), expected.trim_ascii());
            } else {
                // The plain one is padded to a multiple of eight bytes.
                assert!(expected.starts_with(&expanded) || expanded.starts_with(&expected));
            }
            let module = inspect(&expanded).unwrap();
            assert_eq!(module.kernels.len(), 1);
            assert_eq!(module.kernels[0].name, "tiny");
            assert_eq!(module.kernels[0].param_bytes, 12);
            assert_eq!(module.arch.sm, entry.arch.sm);
        }
    }
}

#[test]
fn a_gpu_gets_the_best_machine_code() {
    for image in [PLAIN, LZ4, ZSTD, GROUP] {
        let best = |sm, accepts| {
            let selected = selected(image, &target(sm, accepts)).unwrap();
            assert_eq!(inspect(&selected.bytes).unwrap().kind, selected.kind);
            (selected.kind, selected.arch.to_string())
        };
        let elf = |name: &str| (CodeKind::Elf, name.to_owned());
        let ptx = |name: &str| (CodeKind::Ptx, name.to_owned());
        assert_eq!(best(75, Accepts::Native), elf("sm_75"));
        assert_eq!(best(80, Accepts::Native), elf("sm_80"));
        assert_eq!(best(86, Accepts::Native), elf("sm_80"));
        assert_eq!(best(90, Accepts::Native), elf("sm_90a"));
        assert_eq!(best(121, Accepts::Native), elf("sm_120"));
        // No machine code of their major version: compiled from PTX.
        assert_eq!(best(100, Accepts::Native), ptx("sm_75"));
        assert_eq!(best(130, Accepts::Native), ptx("sm_120"));
        // A device that runs PTX itself.
        assert_eq!(best(80, Accepts::PtxOnly), ptx("sm_75"));
        assert_eq!(best(120, Accepts::PtxOnly), ptx("sm_120"));
        // A device that runs nothing takes what there is.
        assert_eq!(best(90, Accepts::Any), elf("sm_90a"));
        assert_eq!(best(70, Accepts::Any), ptx("sm_120"));
    }
    let family = |sm| selected(FAMILY, &target(sm, Accepts::Native)).map(|s| s.kind);
    assert_eq!(family(103), Ok(CodeKind::Elf));
    assert!(family(120).is_err());
}

#[test]
fn what_does_not_fit_is_named() {
    let error = selected(PLAIN, &target(70, Accepts::Native)).unwrap_err();
    assert_eq!(error.class(), ImageErrorClass::NoBinaryForGpu);
    assert_eq!(
        error.to_string(),
        "no code for a device of sm_70; the image has PTX for sm_75, PTX for sm_120, \
         code for sm_75, code for sm_80, code for sm_90a, code for sm_120"
    );
    let error = selected(LTO, &target(90, Accepts::Any)).unwrap_err();
    assert_eq!(error.class(), ImageErrorClass::NoBinaryForGpu);
    assert!(error.to_string().contains("LTO IR for sm_90"));
    let error = selected(CUBIN, &target(80, Accepts::Native)).unwrap_err();
    assert_eq!(error.class(), ImageErrorClass::NoBinaryForGpu);
    let error = selected(CUBIN, &target(90, Accepts::PtxOnly)).unwrap_err();
    assert_eq!(error.class(), ImageErrorClass::NoBinaryForGpu);
    let error = selected(PTX, &target(70, Accepts::Native)).unwrap_err();
    assert_eq!(error.class(), ImageErrorClass::InvalidPtx);
}

#[test]
fn bare_images_are_selected_as_they_are() {
    let image = [PTX, b"\0 and what follows"].concat();
    let opened = Image::open(&image).unwrap();
    assert_eq!(opened.form(), Form::Ptx);
    let text = select(&opened, &target(80, Accepts::PtxOnly)).unwrap();
    assert_eq!(text.bytes, PTX);
    assert!(matches!(text.bytes, std::borrow::Cow::Borrowed(_)));
    let code = selected(CUBIN, &target(90, Accepts::Native)).unwrap();
    assert_eq!(code.bytes, CUBIN);
    assert_eq!(code.arch, Arch::portable(90));
    assert!(selected(CUBIN, &target(120, Accepts::Any)).is_ok());
}

/// The order of preference when several entries fit; among equals the first.
#[test]
fn optimized_code_comes_before_debug_code() {
    let release = fatbin(&[entry(2, 80, 0x11, b"release")]);
    let both = [
        fatbin(&[entry(2, 80, 0x13, b"debug"), entry(2, 80, 0x11, b"release")]),
        fatbin(&[entry(2, 80, 0x11, b"release"), entry(2, 80, 0x13, b"debug")]),
    ];
    let want = target(80, Accepts::Native);
    let expected = selected(&release, &want).unwrap().bytes.into_owned();
    for image in &both {
        assert_eq!(selected(image, &want).unwrap().bytes, expected);
    }
    let twins = fatbin(&[entry(2, 80, 0x11, b"first"), entry(2, 80, 0x11, b"second")]);
    assert_eq!(selected(&twins, &want).unwrap().index, 0);
    let specific = fatbin(&[
        entry(2, 90, 0x11, b"portable"),
        entry(2, 90, 0x10_0011, b"specific"),
    ]);
    let best = selected(&specific, &target(90, Accepts::Native)).unwrap();
    assert_eq!(best.arch.variant, Variant::Specific);
}

/// An entry that is stored as it is.
fn entry(kind: u16, sm: u32, flags: u64, content: &[u8]) -> Vec<u8> {
    let padded = content.len().next_multiple_of(8);
    let mut entry = Vec::new();
    entry.extend_from_slice(&kind.to_le_bytes());
    entry.extend_from_slice(&0x101_u16.to_le_bytes());
    entry.extend_from_slice(&64_u32.to_le_bytes());
    entry.extend_from_slice(&(padded as u64).to_le_bytes());
    entry.extend_from_slice(&[0; 12]);
    entry.extend_from_slice(&sm.to_le_bytes());
    entry.extend_from_slice(&[0; 8]);
    entry.extend_from_slice(&flags.to_le_bytes());
    entry.extend_from_slice(&[0; 16]);
    entry.extend_from_slice(content);
    entry.resize(64 + padded, 0);
    entry
}

fn fatbin(entries: &[Vec<u8>]) -> Vec<u8> {
    let body = entries.concat();
    let mut fatbin = Vec::new();
    fatbin.extend_from_slice(&0xba55_ed50_u32.to_le_bytes());
    fatbin.extend_from_slice(&1_u16.to_le_bytes());
    fatbin.extend_from_slice(&16_u16.to_le_bytes());
    fatbin.extend_from_slice(&(body.len() as u64).to_le_bytes());
    fatbin.extend_from_slice(&body);
    fatbin
}
