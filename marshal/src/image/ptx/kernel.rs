//! One `.entry`.

use super::Block;
use super::body::Body;
use super::cursor::Cursor;
use super::declaration;
use crate::image::{Cluster, ImageError, KernelInfo, ParamSpec, Resources};

/// Reads what follows `.entry`, up to the end of its body; `None` if it is only declared.
pub(super) fn read<'a>(
    cursor: &mut Cursor<'a>,
    ptx_version: u32,
) -> Result<Option<(KernelInfo, Body<'a>)>, ImageError> {
    let name = cursor.name()?.to_owned();
    let (params, param_bytes) = params(cursor)?;
    let mut kernel = KernelInfo {
        name,
        params,
        param_bytes,
        resources: Resources::default(),
        max_threads: None,
        required_block: None,
        cluster: Cluster::default(),
        ptx_version,
        binary_version: 0,
    };
    if !directives(cursor, &mut kernel)? {
        return Ok(None);
    }
    let body = Body::read(cursor)?;
    let local_bytes = body.local.bytes_u32();
    kernel.resources.local_bytes =
        local_bytes.ok_or_else(|| cursor.error("local memory is too large"))?;
    Ok(Some((kernel, body)))
}

/// The parameter list, if there is one.
fn params(cursor: &mut Cursor<'_>) -> Result<(Vec<ParamSpec>, u32), ImageError> {
    let mut params = Vec::new();
    let mut block = Block::default();
    if !cursor.eat(b'(') || cursor.eat(b')') {
        return Ok((params, 0));
    }
    loop {
        cursor.skip_blank();
        if cursor.word() != b".param" {
            return Err(cursor.error("a parameter without .param"));
        }
        let variable = declaration::parameter(cursor)?;
        let spec = || {
            Some(ParamSpec {
                offset_bytes: u32::try_from(block.place(&variable)?).ok()?,
                size_bytes: u32::try_from(variable.bytes).ok()?,
            })
        };
        let mut spec = spec;
        params.push(spec().ok_or_else(|| cursor.error("parameters are too large"))?);
        if cursor.eat(b')') {
            break;
        }
        if !cursor.eat(b',') {
            return Err(cursor.error("a parameter list without an end"));
        }
    }
    let param_bytes = block.bytes_u32();
    Ok((
        params,
        param_bytes.ok_or_else(|| cursor.error("parameters are too large"))?,
    ))
}

/// What comes between the parameters and the body. False if there is no body.
fn directives(cursor: &mut Cursor<'_>, kernel: &mut KernelInfo) -> Result<bool, ImageError> {
    loop {
        cursor.skip_blank();
        match cursor.peek() {
            None | Some(b';') => return Ok(false),
            Some(b'{') => {
                cursor.bump(1);
                return Ok(true);
            }
            Some(b'"') => cursor.skip_string()?,
            Some(_) => match cursor.word() {
                b".maxntid" => kernel.max_threads = Some(product(cursor.dimensions()?)),
                b".reqntid" => {
                    let block = cursor.dimensions()?;
                    kernel.required_block = Some(block);
                    kernel.max_threads = Some(product(block));
                }
                b".reqnctapercluster" => kernel.cluster.required = Some(cursor.dimensions()?),
                b".explicitcluster" => kernel.cluster.explicit = true,
                b".maxclusterrank" => {
                    let blocks = u32::try_from(cursor.number()?);
                    kernel.cluster.blocks_max = blocks.ok();
                }
                b".pragma" => {
                    cursor.skip_blank();
                    if cursor.peek() == Some(b'"') {
                        cursor.skip_string()?;
                    }
                    cursor.eat(b';');
                }
                b"" => cursor.bump(1),
                _ => {}
            },
        }
    }
}

fn product([x, y, z]: [u32; 3]) -> u32 {
    x.saturating_mul(y).saturating_mul(z)
}
