//! Images that are broken, by accident or on purpose: an error or a value, never a panic, and
//! never work out of proportion.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use farcall_marshal::image::{
    Accepts, EXPANDED_BYTES_MAX, Extent, IMAGE_BYTES_MAX, Image, ImageError, Target,
    expand_from_wire, extent, inspect, select,
};
use proptest::prelude::*;

const IMAGES: [&[u8]; 9] = [
    include_bytes!("../../fixtures/images/tiny_plain.fatbin"),
    include_bytes!("../../fixtures/images/tiny_lz4.fatbin"),
    include_bytes!("../../fixtures/images/tiny_zstd.fatbin"),
    include_bytes!("../../fixtures/images/tiny_group.fatbin"),
    include_bytes!("../../fixtures/images/tiny_debug.fatbin"),
    include_bytes!("../../fixtures/images/linked_sm90.cubin"),
    include_bytes!("../../fixtures/images/params_sm75.cubin"),
    include_bytes!("../../fixtures/images/params_sm120.cubin"),
    include_bytes!("../../fixtures/images/params_sm90.ptx"),
];
const FATBINS: std::ops::Range<usize> = 0..5;
const CUBINS: std::ops::Range<usize> = 5..8;

/// Everything that can be done with an image.
fn exercise(bytes: &[u8]) {
    if let Ok(Extent::NeedMore(wanted)) = extent(bytes) {
        assert!(wanted > bytes.len() && wanted <= IMAGE_BYTES_MAX);
    }
    if let Ok(image) = Image::open(bytes) {
        for accepts in [Accepts::PtxOnly, Accepts::Native, Accepts::Any] {
            if let Ok(selected) = select(&image, &Target { sm: 90, accepts }) {
                inspect_checked(&selected.bytes);
            }
        }
        for entry in image.entries() {
            // What a bomb is, the limits of `expand` decide; here only the cheap ones.
            if entry.expanded_bytes < 1 << 20 {
                let _any = entry.expand();
            }
        }
    }
    inspect_checked(bytes);
    let _any = expand_from_wire(bytes, 1 << 20);
}

/// What `inspect` returns keeps its promises.
fn inspect_checked(bytes: &[u8]) {
    let Ok(module) = inspect(bytes) else { return };
    for kernel in &module.kernels {
        let mut end = 0;
        for param in &kernel.params {
            assert!(param.offset_bytes >= end);
            end = param.offset_bytes.checked_add(param.size_bytes).unwrap();
        }
        assert!(end <= kernel.param_bytes);
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        exercise(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_magic(
        magic in prop_oneof![
            Just([0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]),
            Just([0xb1, 0x43, 0x62, 0x46, 1, 0, 0, 0]),
            Just([0x7f, b'E', b'L', b'F', 2, 1, 1, 0x41]),
        ],
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        exercise(&[&magic[..], &bytes].concat());
    }

    #[test]
    fn any_text_behind_a_header(text in "[.{}()\\[\\];,=\"/*a-z0-9 \n]{0,300}") {
        exercise(format!(".version 8.0\n.target sm_80\n{text}").as_bytes());
    }

    #[test]
    fn declarations_out_of_order(words in proptest::collection::vec(
        prop_oneof![
            Just(".entry"), Just(".func"), Just(".param"), Just(".shared"), Just(".global"),
            Just(".align"), Just(".b8"), Just(".b64"), Just("name"), Just("8"), Just("[8]"),
            Just("("), Just(")"), Just("{"), Just("}"), Just(";"), Just(","), Just("="),
            Just("\"s\""), Just("//c\n"), Just("/*c*/"), Just(".extern"), Just(".maxntid"),
        ],
        0..60,
    )) {
        exercise(format!(".version 8.0\n.target sm_80\n{}", words.join(" ")).as_bytes());
    }

    #[test]
    fn real_images_with_changed_bytes(
        which in 0..IMAGES.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut image = IMAGES[which].to_vec();
        for (at, value) in changes {
            let at = at.index(image.len());
            image[at] = value;
        }
        exercise(&image);
    }

    /// Headers are where the harm is: they are a small part of an image, so they get their own.
    #[test]
    fn real_images_with_changed_headers(
        which in 0..IMAGES.len(),
        changes in proptest::collection::vec((0_usize..200, any::<u8>()), 1..4),
        from_end in any::<bool>(),
    ) {
        let mut image = IMAGES[which].to_vec();
        for (at, value) in changes {
            let at = if from_end { image.len() - 1 - at * 20 % image.len() } else { at };
            image[at] = value;
        }
        exercise(&image);
    }
}

#[test]
fn truncated_images_are_errors() {
    for image in IMAGES {
        for length in 0..image.len().min(1000) {
            exercise(&image[..length]);
        }
        for cut in (1..image.len()).step_by(97) {
            exercise(&image[..image.len() - cut]);
        }
    }
    for index in FATBINS {
        let image = IMAGES[index];
        for length in (16..image.len()).step_by(61) {
            assert!(
                matches!(
                    Image::open(&image[..length]),
                    Err(ImageError::Truncated { .. })
                ),
                "{length}"
            );
        }
    }
    for index in CUBINS {
        let image = IMAGES[index];
        // Cut into the section table, which is near the end.
        assert!(matches!(
            inspect(&image[..image.len() - 1000]),
            Err(ImageError::Truncated { .. })
        ));
    }
}

fn put(image: &mut [u8], at: usize, value: &[u8]) {
    image[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn a_corrupt_cubin_is_a_typed_error() {
    let cubin = IMAGES[5];
    let section_table = usize::try_from(u64::from_le_bytes(cubin[40..48].try_into().unwrap()));
    let section_table = section_table.unwrap();
    // Of the ELF header: the section table's place, and the index of its names.
    for (at, value) in [(40, u64::MAX), (40, 8), (40, cubin.len() as u64)] {
        let mut broken = cubin.to_vec();
        put(&mut broken, at, &value.to_le_bytes());
        assert!(inspect(&broken).is_err());
        assert!(extent(&broken).is_err() || extent(&broken) != Ok(Extent::Total(cubin.len())));
    }
    let mut broken = cubin.to_vec();
    put(&mut broken, 62, &200_u16.to_le_bytes());
    assert!(matches!(
        inspect(&broken),
        Err(ImageError::Malformed { .. })
    ));
    // Of the section headers: every offset, then every size.
    let mut refused = 0;
    for section in (section_table..cubin.len() - 64).step_by(64) {
        for field in [24, 32] {
            let mut broken = cubin.to_vec();
            put(&mut broken, section + field, &(u64::MAX / 2).to_le_bytes());
            if inspect(&broken).is_err() {
                refused += 1;
            }
        }
    }
    assert!(refused >= 10, "{refused}");
}

#[test]
fn a_kernel_with_contradictory_parameters_is_refused() {
    let cubin = IMAGES[6];
    // KPARAM_INFO: form, attribute, length 12; the ordinal comes 8 bytes further.
    let info = [4_u8, 0x17, 12, 0, 0, 0, 0, 0];
    let mut broken = cubin.to_vec();
    let places: Vec<_> = (0..cubin.len() - 8)
        .filter(|&at| cubin[at..at + 8] == info)
        .collect();
    assert!(places.len() > 10);
    for at in places {
        for (field, value) in [(8, 0x77_u16), (10, 0xfff0), (14, 0xfff0)] {
            let mut broken = cubin.to_vec();
            put(&mut broken, at + field, &value.to_le_bytes());
            assert!(
                matches!(inspect(&broken), Err(ImageError::Malformed { .. })),
                "{at}: {field}"
            );
        }
    }
    // An attribute that reaches out of its section.
    let at = (0..cubin.len() - 8)
        .find(|&at| cubin[at..at + 8] == info)
        .unwrap();
    put(&mut broken, at + 2, &0xffff_u16.to_le_bytes());
    assert!(matches!(
        inspect(&broken),
        Err(ImageError::Malformed { .. })
    ));
}

/// A fatbin of one compressed entry that claims to expand to `expanded`.
fn bomb(flags: u64, stored: &[u8], expanded: u64) -> Vec<u8> {
    let padded = stored.len().next_multiple_of(8);
    let mut image = vec![0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0];
    image.extend_from_slice(&(64 + padded as u64).to_le_bytes());
    image.extend_from_slice(&[2, 0, 1, 1, 64, 0, 0, 0]);
    image.extend_from_slice(&(padded as u64).to_le_bytes());
    image.extend_from_slice(&u32::try_from(stored.len()).unwrap().to_le_bytes());
    image.extend_from_slice(&[0; 8]);
    image.extend_from_slice(&90_u32.to_le_bytes());
    image.extend_from_slice(&[0; 8]);
    image.extend_from_slice(&flags.to_le_bytes());
    image.extend_from_slice(&[0; 8]);
    image.extend_from_slice(&expanded.to_le_bytes());
    image.extend_from_slice(stored);
    image.resize(16 + 64 + padded, 0);
    image
}

#[test]
fn decompression_bombs_are_refused() {
    let target = Target {
        sm: 90,
        accepts: Accepts::Native,
    };
    let zeroes = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    for (flags, stored, expanded) in [
        // More than the frame really has, or less, or more than anyone may have.
        (0x8011, &zeroes[..], 1 << 20),
        (0x8011, &zeroes[..], EXPANDED_BYTES_MAX as u64),
        (0x8011, &zeroes[..], EXPANDED_BYTES_MAX as u64 + 1),
        (0x8011, &zeroes[..], u64::MAX),
        (0x8011, &[], 1 << 20),
        (0x2011, &[0x1f; 100], 1 << 30),
        (0x2011, &[0x1f; 100], u64::MAX),
        (0xa011, &zeroes[..], 64 << 20),
    ] {
        let image = bomb(flags, stored, expanded);
        let result = Image::open(&image).and_then(|image| select(&image, &target).map(|_| ()));
        assert!(result.is_err(), "{flags:#x} {expanded}");
    }
    // Honest, so it is expanded; but it is no cubin.
    let image = bomb(0x8011, &zeroes, 64 << 20);
    let image = Image::open(&image).unwrap();
    let selected = select(&image, &target).unwrap();
    assert!(inspect(&selected.bytes).is_err());
}

/// Time that an honest machine never takes for these, but quadratic work would.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn overlapping_sections_do_not_multiply_the_work() {
    // As many .nv.info sections as fit into 4 MB, all covering the same 2 MB of attributes.
    let body = [4_u8, 0xee, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(2 << 16);
    let sections = 32_000_usize;
    let table_at = 64 + body.len();
    let mut image = IMAGES[5][..64].to_vec();
    put(&mut image, 40, &(table_at as u64).to_le_bytes());
    put(
        &mut image,
        60,
        &u16::try_from(sections).unwrap().to_le_bytes(),
    );
    put(&mut image, 62, &0_u16.to_le_bytes());
    image.extend_from_slice(&body);
    let mut section = [0_u8; 64];
    put(&mut section, 4, &0x7000_0000_u32.to_le_bytes());
    put(&mut section, 24, &64_u64.to_le_bytes());
    put(&mut section, 32, &(body.len() as u64).to_le_bytes());
    for _ in 0..sections {
        image.extend_from_slice(&section);
    }
    let start = Instant::now();
    assert!(matches!(inspect(&image), Err(ImageError::Malformed { .. })));
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn long_names_do_not_multiply_the_work() {
    // A hundred thousand kernels whose names all run through the same two megabytes.
    let names_at = 64_usize;
    let names = vec![b'n'; 2 << 20];
    let symbols_at = names_at + names.len();
    let symbols = 100_000_usize;
    let table_at = symbols_at + symbols * 24;
    let mut image = IMAGES[5][..64].to_vec();
    put(&mut image, 40, &(table_at as u64).to_le_bytes());
    put(&mut image, 60, &4_u16.to_le_bytes());
    put(&mut image, 62, &1_u16.to_le_bytes());
    image.extend_from_slice(&names);
    let mut symbol = [0_u8; 24];
    put(&mut symbol, 4, &[0x12, 0x10, 3, 0]);
    for _ in 0..symbols {
        image.extend_from_slice(&symbol);
    }
    let section = |kind: u32, at: usize, size: usize, link: u32| {
        let mut section = [0_u8; 64];
        put(&mut section, 4, &kind.to_le_bytes());
        put(&mut section, 24, &(at as u64).to_le_bytes());
        put(&mut section, 32, &(size as u64).to_le_bytes());
        put(&mut section, 40, &link.to_le_bytes());
        section
    };
    image.extend_from_slice(&section(0, 0, 0, 0));
    image.extend_from_slice(&section(3, names_at, names.len(), 0));
    image.extend_from_slice(&section(2, symbols_at, symbols * 24, 1));
    image.extend_from_slice(&section(1, names_at, 16, 0));
    let start = Instant::now();
    assert!(matches!(inspect(&image), Err(ImageError::Malformed { .. })));
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn large_texts_take_linear_time() {
    let head = ".version 8.0\n.target sm_80\n";
    for piece in [
        ".pragma \"nounroll\";\n",
        ".entry k() { .pragma \"x\"; }\n",
        ".shared .b32 s; .entry k() { call s; }\n",
        ".func f() { .shared .b32 s; call f; }\n",
        ".global .b8 g[] = {1,2,3};\n",
        "{",
        "/* \n",
        "\" \" ",
        ".entry k() { {{{{ }}}} st.v2.u32 {a, b}, [c]; }\n",
    ] {
        let text = format!("{head}{}", piece.repeat((4 << 20) / piece.len()));
        let start = Instant::now();
        let _any = inspect(text.as_bytes());
        assert!(start.elapsed() < PATIENCE, "{piece}: {:?}", start.elapsed());
    }
}
