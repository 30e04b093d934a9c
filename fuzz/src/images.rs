//! Modules as programs hand them over, and as they are sent.

use farcall_marshal::image::{
    Accepts, Extent, IMAGE_BYTES_MAX, Image, Target, compress_for_wire, expand_from_wire, extent,
    inspect, select,
};

/// What entries may claim here, so that a fuzzer's time goes into parsing.
const EXPANDED_BYTES_MAX: usize = 4 << 20;

/// Asking for an image's length makes progress, ends, and does not change its mind.
pub fn extents(memory: &[u8]) {
    let mut wanted = 4.min(memory.len());
    loop {
        match extent(&memory[..wanted]) {
            Ok(Extent::NeedMore(more)) => {
                assert!(more > wanted && more <= IMAGE_BYTES_MAX);
                if more > memory.len() {
                    return;
                }
                wanted = more;
            }
            known => {
                assert_eq!(extent(memory).is_ok(), known.is_ok());
                if let (Ok(Extent::Total(total)), Ok(Extent::Total(again))) =
                    (known, extent(memory))
                {
                    assert_eq!(total, again);
                }
                return;
            }
        }
    }
}

/// Reading cubins and PTX.
pub fn inspected(bytes: &[u8]) {
    let Ok(module) = inspect(bytes) else {
        return;
    };
    for kernel in &module.kernels {
        let mut end = 0;
        for param in &kernel.params {
            assert!(param.offset_bytes >= end);
            end = param.offset_bytes + param.size_bytes;
        }
        assert!(end <= kernel.param_bytes);
    }
}

/// Reading PTX whose header is valid, which a fuzzer would take long to find.
pub fn ptx(text: &[u8]) {
    let _any = inspect(&[b".version 8.0\n.target sm_80\n", text].concat());
}

/// Opening an image, selecting from it and expanding what was selected.
pub fn open(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    for entry in image.entries() {
        assert!(entry.stored_bytes() <= bytes.len());
        if entry.expanded_bytes > EXPANDED_BYTES_MAX {
            return;
        }
    }
    for accepts in [Accepts::PtxOnly, Accepts::Native, Accepts::Any] {
        for sm in [75, 90, 120] {
            if let Ok(selected) = select(&image, &Target { sm, accepts }) {
                assert!(selected.index < image.entries().len());
                let _any = inspect(&selected.bytes);
            }
        }
    }
}

/// Images as they are sent: from anyone, and from ourselves.
pub fn wire(bytes: &[u8]) {
    if let Ok(expanded) = expand_from_wire(bytes, EXPANDED_BYTES_MAX) {
        assert!(expanded.len() <= EXPANDED_BYTES_MAX);
    }
    let wire = compress_for_wire(bytes);
    assert_eq!(expand_from_wire(&wire, bytes.len()).as_deref(), Ok(bytes));
}
