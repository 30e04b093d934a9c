//! Texture and surface objects.
#![forbid(unsafe_code)]

use farcall_marshal::record::Record as _;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuTexObjectCreateReply, CuTexObjectDestroy};

use crate::abi::{CUDA_RESOURCE_DESC, CUDA_RESOURCE_VIEW_DESC, CUDA_TEXTURE_DESC};
use crate::context;
use crate::process::process;
use crate::ptr::{In, Out};
use crate::session::SessionKey;
use crate::texture::TextureObject;

pub(crate) fn cuTexObjectCreate(
    place: Out<u64>,
    resource: In<CUDA_RESOURCE_DESC>,
    texture: In<CUDA_TEXTURE_DESC>,
    view: In<CUDA_RESOURCE_VIEW_DESC>,
) -> CuResult {
    let view = if view.is_null() {
        None
    } else {
        Some(view.get()?)
    };
    create(place, resource.get()?, Some(texture.get()?), view)
}

pub(crate) fn cuSurfObjectCreate(place: Out<u64>, resource: In<CUDA_RESOURCE_DESC>) -> CuResult {
    create(place, resource.get()?, None, None)
}

/// Asks the server: kernels name the object by a number that only the device can choose.
fn create(
    place: Out<u64>,
    resource: CUDA_RESOURCE_DESC,
    texture: Option<CUDA_TEXTURE_DESC>,
    view: Option<CUDA_RESOURCE_VIEW_DESC>,
) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let object = TextureObject {
        context,
        resource,
        texture,
        view,
    };
    let reply = context.session().ask(context.id, &object.record()?)?;
    let reply = CuTexObjectCreateReply::decode_body(&reply).map_err(|_| CuStatus::UNKNOWN)?;
    let key = (SessionKey::of(context.session()), reply.object);
    process()?.textures.lock().insert(key, object);
    place.set(reply.object)
}

pub(crate) fn cuTexObjectDestroy(object: u64) -> CuResult {
    destroy(object, |known| known.texture.is_some())
}

pub(crate) fn cuSurfObjectDestroy(object: u64) -> CuResult {
    destroy(object, |known| known.texture.is_none())
}

fn destroy(object: u64, is_meant: impl Fn(&TextureObject) -> bool) -> CuResult {
    let key = (SessionKey::of(context::current()?.session()), object);
    let mut textures = process()?.textures.lock();
    let known = textures.get(&key).filter(|known| is_meant(known));
    let owner = known.ok_or(CuStatus::INVALID_VALUE)?.context;
    textures.remove(&key);
    drop(textures);
    owner
        .session()
        .send(owner.id, &CuTexObjectDestroy { object })
}

fn described(object: u64, is_texture: bool) -> CuResult<TextureObject> {
    let key = (SessionKey::of(context::current()?.session()), object);
    let known = process()?.textures.lock().get(&key).copied();
    known
        .filter(|known| known.texture.is_some() == is_texture)
        .ok_or(CuStatus::INVALID_VALUE)
}

pub(crate) fn cuTexObjectGetResourceDesc(place: Out<CUDA_RESOURCE_DESC>, object: u64) -> CuResult {
    place.set(described(object, true)?.resource)
}

pub(crate) fn cuTexObjectGetTextureDesc(place: Out<CUDA_TEXTURE_DESC>, object: u64) -> CuResult {
    let texture = described(object, true)?.texture;
    place.set(texture.ok_or(CuStatus::INVALID_VALUE)?)
}

/// `INVALID_VALUE` for an object that was made without a view, as cuda.h says.
pub(crate) fn cuTexObjectGetResourceViewDesc(
    place: Out<CUDA_RESOURCE_VIEW_DESC>,
    object: u64,
) -> CuResult {
    let view = described(object, true)?.view;
    place.set(view.ok_or(CuStatus::INVALID_VALUE)?)
}

pub(crate) fn cuSurfObjectGetResourceDesc(place: Out<CUDA_RESOURCE_DESC>, object: u64) -> CuResult {
    place.set(described(object, false)?.resource)
}
