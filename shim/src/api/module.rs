//! Modules and libraries.
#![forbid(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::CuModuleUnload;

use crate::context;
use crate::module::{Code, Library, Module};
use crate::process::process;
use crate::ptr::{HostPtr, Out, Text};

pub(crate) fn cuModuleLoadData(place: Out<u64>, image: HostPtr) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let code = Code::open(image, context.device)?;
    place.set(Module::load(context, Arc::new(code))?.handle)
}

/// JIT options tune a compiler that runs on the server; those that return something return nothing.
pub(crate) fn cuModuleLoadDataEx(
    place: Out<u64>,
    image: HostPtr,
    count: u32,
    options: Out<u32>,
    values: Out<*mut c_void>,
) -> CuResult {
    clear_logs(count, options, values)?;
    cuModuleLoadData(place, image)
}

/// Options that name a log buffer also say how long it is and want to hear how much was written.
pub(super) fn clear_logs(count: u32, options: Out<u32>, values: Out<*mut c_void>) -> CuResult {
    const INFO_LOG: u32 = 3;
    const ERROR_LOG: u32 = 5;
    for index in 0..count as usize {
        if matches!(options.get_at(index)?, INFO_LOG | ERROR_LOG) {
            let buffer = values.pointer_at(index)?;
            if !buffer.is_null() {
                buffer.out::<u8>().set(0)?;
            }
        }
    }
    Ok(())
}

pub(crate) fn cuModuleLoadFatBinary(place: Out<u64>, image: HostPtr) -> CuResult {
    cuModuleLoadData(place, image)
}

/// The path is the client's.
pub(super) fn read_file(path: Text) -> CuResult<Vec<u8>> {
    std::fs::read(path.get()?).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => CuStatus::FILE_NOT_FOUND,
        _ => CuStatus::OPERATING_SYSTEM,
    })
}

/// Text files may or may not end in NUL; images do not care.
fn image_of_file(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(&[0]).unwrap_or(bytes)
}

pub(crate) fn cuModuleLoad(place: Out<u64>, path: Text) -> CuResult {
    let context = context::current()?;
    let bytes = read_file(path)?;
    let code = Code::from_bytes(image_of_file(&bytes), context.device)?;
    place.set(Module::load(context, Arc::new(code))?.handle)
}

pub(crate) fn cuModuleUnload(handle: u64) -> CuResult {
    let module = process()?.modules.remove(handle)?;
    module.forget()?;
    unload(&module)
}

fn unload(module: &Module) -> CuResult {
    if !module.context.is_alive() {
        return Ok(());
    }
    module
        .context
        .session()
        .send(module.context.id, &CuModuleUnload { module: module.id })
}

pub(crate) fn cuModuleGetFunction(place: Out<u64>, handle: u64, name: Text) -> CuResult {
    let module = process()?.modules.get(handle)?;
    let index = module.code.kernel_index(&name.get()?)?;
    place.set(module.function(index)?)
}

pub(crate) fn cuModuleGetGlobal_v2(
    address: Out<u64>,
    bytes: Out<usize>,
    handle: u64,
    name: Text,
) -> CuResult {
    let (start, size) = process()?.modules.get(handle)?.global(&name.get()?)?;
    address.set_if(start);
    bytes.set_if(usize::try_from(size).unwrap_or(usize::MAX));
    Ok(())
}

pub(crate) fn cuModuleGetFunctionCount(count: Out<u32>, handle: u64) -> CuResult {
    let module = process()?.modules.get(handle)?;
    count.set(u32::try_from(module.code.info.kernels.len()).unwrap_or(u32::MAX))
}

/// Handles of every function of a module.
pub(crate) fn module_functions(handle: u64) -> CuResult<Vec<u64>> {
    let module = process()?.modules.get(handle)?;
    (0..module.code.info.kernels.len())
        .map(|index| module.function(index))
        .collect()
}

pub(crate) fn cuModuleEnumerateFunctions(places: Out<u64>, count: u32, handle: u64) -> CuResult {
    for (index, function) in module_functions(handle)?
        .into_iter()
        .take(count as usize)
        .enumerate()
    {
        places.set_at(index, function);
    }
    Ok(())
}

fn load_library(
    place: Out<u64>,
    open: impl FnOnce(&crate::process::Device) -> CuResult<Code>,
) -> CuResult {
    let process = process()?;
    let current = context::current_any().ok();
    // A library is every context's; which device's code is taken is the current context's, else the first's.
    let device = match current {
        Some(context) => context.device,
        None => process.device(0)?,
    };
    let code = open(device)?;
    let handle = process.libraries.reserve();
    let library = Arc::new(Library::new(handle, code));
    if let Some(context) = current {
        library.module(context)?;
    }
    process.libraries.insert(handle, library);
    place.set(handle)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuLibraryLoadData(
    place: Out<u64>,
    image: HostPtr,
    options: Out<u32>,
    values: Out<*mut c_void>,
    count: u32,
    _library_options: Out<u32>,
    _library_values: Out<*mut c_void>,
    _library_count: u32,
) -> CuResult {
    if place.is_null() || image.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    clear_logs(count, options, values)?;
    load_library(place, |device| Code::open(image, device))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuLibraryLoadFromFile(
    place: Out<u64>,
    path: Text,
    options: Out<u32>,
    values: Out<*mut c_void>,
    count: u32,
    _library_options: Out<u32>,
    _library_values: Out<*mut c_void>,
    _library_count: u32,
) -> CuResult {
    clear_logs(count, options, values)?;
    let bytes = read_file(path)?;
    load_library(place, |device| {
        Code::from_bytes(image_of_file(&bytes), device)
    })
}

pub(crate) fn cuLibraryUnload(handle: u64) -> CuResult {
    let process = process()?;
    let library = process.libraries.remove(handle)?;
    for module in library.forget()? {
        let _ = process.modules.remove(module.handle);
        module.forget()?;
        unload(&module)?;
    }
    Ok(())
}

pub(crate) fn cuLibraryGetKernel(place: Out<u64>, handle: u64, name: Text) -> CuResult {
    let library = process()?.libraries.get(handle)?;
    let index = library.code.kernel_index(&name.get()?)?;
    place.set(library.kernel(index)?)
}

pub(crate) fn cuLibraryGetKernelCount(count: Out<u32>, handle: u64) -> CuResult {
    let library = process()?.libraries.get(handle)?;
    count.set(u32::try_from(library.code.info.kernels.len()).unwrap_or(u32::MAX))
}

pub(crate) fn cuLibraryEnumerateKernels(places: Out<u64>, count: u32, handle: u64) -> CuResult {
    let library = process()?.libraries.get(handle)?;
    for index in 0..library.code.info.kernels.len().min(count as usize) {
        places.set_at(index, library.kernel(index)?);
    }
    Ok(())
}

pub(crate) fn cuLibraryGetModule(place: Out<u64>, handle: u64) -> CuResult {
    place.set(
        process()?
            .libraries
            .get(handle)?
            .module(context::current()?)?
            .handle,
    )
}

pub(crate) fn cuLibraryGetGlobal(
    address: Out<u64>,
    bytes: Out<usize>,
    handle: u64,
    name: Text,
) -> CuResult {
    let module = process()?
        .libraries
        .get(handle)?
        .module(context::current()?)?;
    let (start, size) = module.global(&name.get()?)?;
    address.set_if(start);
    bytes.set_if(usize::try_from(size).unwrap_or(usize::MAX));
    Ok(())
}

pub(crate) fn cuLibraryGetManaged(
    address: Out<u64>,
    bytes: Out<usize>,
    handle: u64,
    name: Text,
) -> CuResult {
    let wanted = name.get()?;
    let library = process()?.libraries.get(handle)?;
    if !library
        .code
        .info
        .globals
        .iter()
        .any(|global| global.is_managed && global.name == wanted)
    {
        return Err(CuStatus::NOT_FOUND);
    }
    cuLibraryGetGlobal(address, bytes, handle, name)
}
