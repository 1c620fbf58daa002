//! The functions that lowered kernels call: one per GPU operation.
//!
//! *Takes* what the generated code passes; *gives* the operation done on the current block; *promises* to be the only entry from generated code.
//! The last argument of most is the number of the operation, for reports. None of them holds anything that must be dropped while it waits:
//! the fibers of a failed block are abandoned.

use super::block::{attempt, wait_for, with};

/// Names and addresses for the code generator.
pub(super) fn table() -> Vec<(&'static str, *mut ())> {
    macro_rules! list {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), $name as *mut ())),*] };
    }
    list![
        emu_thread,
        emu_block,
        emu_shared,
        emu_shared_address,
        emu_registers,
        emu_load,
        emu_store,
        emu_masked_load,
        emu_masked_store,
        emu_barrier,
        emu_named_barrier,
        emu_warp_barrier,
        emu_shuffle_xor_f32,
        emu_shuffle_xor_i32,
        emu_shuffle_from_f32,
        emu_shuffle_from_i32,
        emu_mbarrier_init,
        emu_mbarrier_init_fence,
        emu_mbarrier_arrive,
        emu_mbarrier_expect,
        emu_mbarrier_wait,
        emu_tma_load,
        emu_tma_store,
        emu_tma_commit,
        emu_tma_wait,
        emu_tma_prefetch,
        emu_tma_ahead,
        emu_copy,
        emu_copy_commit,
        emu_copy_wait,
        emu_async_fence,
        emu_set_registers,
        emu_wgmma_fence,
        emu_wgmma_commit,
        emu_wgmma_wait,
        emu_wgmma_wait_values,
        emu_wgmma,
        emu_wgmma_registers,
        emu_store_matrix,
        emu_store_matrix_t,
        emu_load_matrix,
        emu_load_matrix_t,
        emu_mma,
        emu_exp2,
        emu_log2,
        emu_rsqrt,
        emu_recip,
        emu_tanh,
        fmaf,
        fmodf,
        __truncsfbf2,
        __truncsfhf2,
        __extendhfsf2,
    ]
}

extern "C" fn emu_thread() -> i32 {
    with(|b| b.current as i32)
}

extern "C" fn emu_block() -> i32 {
    with(|b| b.index as i32)
}

extern "C" fn emu_shared() -> usize {
    with(|b| b.memory.shared_base())
}

extern "C" fn emu_shared_address(pointer: usize, site: i32) -> i32 {
    attempt(site, |b| b.memory.shared(pointer, 0, 1).map(|at| at as i32))
}

extern "C" fn emu_registers() -> *mut u32 {
    with(|b| b.registers[b.current].as_mut_ptr())
}

extern "C" fn emu_load(pointer: usize, bytes: i32, align: i32, site: i32) {
    attempt(site, |b| b.access(pointer, bytes as usize, align as usize, false));
}

extern "C" fn emu_store(pointer: usize, bytes: i32, align: i32, site: i32) {
    attempt(site, |b| b.access(pointer, bytes as usize, align as usize, true));
}

fn masked(pointer: usize, mask: u64, bytes: i32, site: i32, write: bool) {
    attempt(site, |b| {
        let bytes = bytes as usize;
        let lanes = (0..64usize).filter(|lane| mask >> lane & 1 == 1);
        for lane in lanes {
            b.access(pointer + lane * bytes, bytes, bytes, write)?;
        }
        Ok(())
    });
}

extern "C" fn emu_masked_load(pointer: usize, mask: u64, bytes: i32, site: i32) {
    masked(pointer, mask, bytes, site, false);
}

extern "C" fn emu_masked_store(pointer: usize, mask: u64, bytes: i32, site: i32) {
    masked(pointer, mask, bytes, site, true);
}

// ---- barriers and shuffles ----

extern "C" fn emu_barrier(site: i32) {
    let wait = attempt(site, |b| b.barrier(0, b.threads.len()));
    wait_for(wait);
}

extern "C" fn emu_named_barrier(id: i32, threads: i32, site: i32) {
    let wait = attempt(site, |b| match id {
        1..=15 => b.barrier(id, threads.max(0) as usize),
        _ => Err(format!("a named barrier {id}")),
    });
    wait_for(wait);
}

/// Exchanges a value with the warp; gives that of lane `from`.
fn exchange(value: u32, mask: i32, barrier: bool, from: usize, site: i32) -> u32 {
    let (wait, buffer) = attempt(site, |b| match mask {
        -1 => b.meet(&[value.into()], barrier),
        _ => Err(format!("lanes {mask:#x} of a warp instead of all")),
    });
    wait_for(wait);
    with(|b| b.warps[b.current / 32].values[buffer][from][0] as u32)
}

extern "C" fn emu_warp_barrier(mask: i32, site: i32) {
    exchange(0, mask, true, 0, site);
}

fn shuffle_xor(mask: i32, value: u32, by: i32, clamp: i32, site: i32) -> u32 {
    attempt(site, |_| check_shuffle(by, clamp));
    exchange(value, mask, false, with(|b| b.current % 32) ^ by as usize, site)
}

fn shuffle_from(mask: i32, value: u32, from: i32, clamp: i32, site: i32) -> u32 {
    attempt(site, |_| check_shuffle(from, clamp));
    exchange(value, mask, false, from as usize, site)
}

fn check_shuffle(lane: i32, clamp: i32) -> Result<(), String> {
    match (lane, clamp) {
        (0..32, 31) => Ok(()),
        _ => Err(format!("a shuffle with lane {lane} and clamp {clamp}")),
    }
}

extern "C" fn emu_shuffle_xor_f32(mask: i32, value: f32, by: i32, clamp: i32, site: i32) -> f32 {
    f32::from_bits(shuffle_xor(mask, value.to_bits(), by, clamp, site))
}

extern "C" fn emu_shuffle_xor_i32(mask: i32, value: u32, by: i32, clamp: i32, site: i32) -> u32 {
    shuffle_xor(mask, value, by, clamp, site)
}

extern "C" fn emu_shuffle_from_f32(mask: i32, value: f32, from: i32, clamp: i32, site: i32) -> f32 {
    f32::from_bits(shuffle_from(mask, value.to_bits(), from, clamp, site))
}

extern "C" fn emu_shuffle_from_i32(mask: i32, value: u32, from: i32, clamp: i32, site: i32) -> u32 {
    shuffle_from(mask, value, from, clamp, site)
}

// ---- mbarriers and copies ----

extern "C" fn emu_mbarrier_init(at: usize, count: i32, site: i32) {
    attempt(site, |b| b.mbarrier_init(at, count));
}

extern "C" fn emu_mbarrier_init_fence(site: i32) {
    attempt(site, |b| b.mbarrier_init_fence());
}

extern "C" fn emu_mbarrier_arrive(at: usize, site: i32) {
    attempt(site, |b| b.mbarrier_arrive(at, 0));
}

extern "C" fn emu_mbarrier_expect(at: usize, bytes: i32, site: i32) {
    attempt(site, |b| b.mbarrier_arrive(at, bytes));
}

extern "C" fn emu_mbarrier_wait(at: usize, parity: i32, site: i32) {
    let wait = attempt(site, |b| b.mbarrier_wait(at, parity));
    wait_for(wait);
    attempt(site, |b| b.mbarrier_waited(wait));
}

#[allow(clippy::too_many_arguments)]
extern "C" fn emu_tma_load(
    to: usize,
    map: usize,
    bar: usize,
    rank: i32,
    c0: i32,
    c1: i32,
    c2: i32,
    c3: i32,
    c4: i32,
    site: i32,
) {
    attempt(site, |b| b.load(to, map, bar, rank, [c0, c1, c2, c3, c4]));
}

#[allow(clippy::too_many_arguments)]
extern "C" fn emu_tma_store(
    map: usize,
    from: usize,
    rank: i32,
    c0: i32,
    c1: i32,
    c2: i32,
    c3: i32,
    c4: i32,
    site: i32,
) {
    attempt(site, |b| b.store(map, from, rank, [c0, c1, c2, c3, c4]));
}

extern "C" fn emu_tma_commit(site: i32) {
    attempt(site, |b| {
        b.commit_stores();
        Ok(())
    });
}

extern "C" fn emu_tma_wait(pending: i32, site: i32) {
    attempt(site, |b| b.wait_stores(pending));
}

extern "C" fn emu_tma_prefetch(map: usize, site: i32) {
    attempt(site, |b| b.memory.map(map).map(|_| ()));
}

#[allow(clippy::too_many_arguments)]
extern "C" fn emu_tma_ahead(map: usize, rank: i32, c0: i32, c1: i32, c2: i32, c3: i32, c4: i32, site: i32) {
    attempt(site, |b| b.ahead(map, rank, [c0, c1, c2, c3, c4]));
}

extern "C" fn emu_copy(to: usize, from: usize, count: i32, site: i32) {
    attempt(site, |b| b.copy_piece(to, from, count));
}

extern "C" fn emu_copy_commit(site: i32) {
    attempt(site, |b| {
        b.pieces.commit(b.current);
        Ok(())
    });
}

extern "C" fn emu_copy_wait(pending: i32, site: i32) {
    attempt(site, |b| b.wait_pieces(pending));
}

extern "C" fn emu_async_fence(site: i32) {
    attempt(site, |b| b.async_fence());
}

// ---- warpgroup products ----

extern "C" fn emu_set_registers(count: i32, more: i32, site: i32) {
    let wait = attempt(site, |b| b.set_registers(count as u32, more != 0));
    wait_for(wait);
    attempt(site, |b| b.take_registers(count as u32));
}

extern "C" fn emu_wgmma_fence(site: i32) {
    attempt(site, |b| b.product_fence());
}

/// As `.sync.aligned` says, no lane goes on before its warp is there; memory is not ordered.
extern "C" fn emu_wgmma_commit(site: i32) {
    attempt(site, |b| b.commit_products());
    exchange(0, -1, false, 0, site);
}

extern "C" fn emu_wgmma_wait(pending: i32, site: i32) {
    wait_products(0, pending, site);
}

extern "C" fn emu_wgmma_wait_values(_: usize, count: i32, pending: i32, site: i32) {
    wait_products(count as usize, pending, site);
}

fn wait_products(count: usize, pending: i32, site: i32) {
    let (wait, before) = attempt(site, |b| b.wait_products(pending));
    wait_for(wait);
    attempt(site, |b| b.take_products(before, count));
}

extern "C" fn emu_wgmma(_: usize, left: i64, right: i64, n: i32, flags: i32, site: i32) {
    attempt(site, |b| b.product(left, right, n, flags));
}

#[allow(clippy::too_many_arguments)]
extern "C" fn emu_wgmma_registers(
    _: usize,
    a0: u32,
    a1: u32,
    a2: u32,
    a3: u32,
    right: i64,
    n: i32,
    flags: i32,
    site: i32,
) {
    attempt(site, |b| b.product_registers([a0, a1, a2, a3], right, n, flags));
}

// ---- fragments ----

fn store_matrix(at: usize, parts: [u32; 4], transposed: bool, site: i32) {
    let [p, q, r, s] = parts.map(u64::from);
    let wait = attempt(site, |b| {
        let (wait, buffer) = b.meet(&[at as u64, p, q, r, s], false)?;
        b.store_matrices(buffer, transposed)?;
        Ok(wait)
    });
    wait_for(wait);
}

extern "C" fn emu_store_matrix(at: usize, a: u32, b: u32, c: u32, d: u32, site: i32) {
    store_matrix(at, [a, b, c, d], false, site);
}

extern "C" fn emu_store_matrix_t(at: usize, a: u32, b: u32, c: u32, d: u32, site: i32) {
    store_matrix(at, [a, b, c, d], true, site);
}

fn load_matrix(at: usize, transposed: bool, site: i32) {
    let (wait, buffer) = attempt(site, |b| b.meet(&[at as u64], false));
    wait_for(wait);
    attempt(site, |b| b.load_matrices(buffer, transposed));
}

extern "C" fn emu_load_matrix(_: usize, at: usize, site: i32) {
    load_matrix(at, false, site);
}

extern "C" fn emu_load_matrix_t(_: usize, at: usize, site: i32) {
    load_matrix(at, true, site);
}

extern "C" fn emu_mma(_: usize, site: i32) {
    let (wait, buffer) = attempt(site, |b| {
        let mut values = [0u64; 10];
        let registers = &b.registers[b.current];
        values.iter_mut().zip(registers).for_each(|(v, &r)| *v = r.into());
        let (wait, buffer) = b.meet(&values, false)?;
        b.multiply_fragments(buffer);
        Ok((wait, buffer))
    });
    wait_for(wait);
    with(|b| b.take_fragment(buffer));
}

// ---- arithmetic ----

/// Subnormals count as zero.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

extern "C" fn emu_exp2(x: f32) -> f32 {
    flush(libm::exp2(flush(x).into()) as f32)
}

extern "C" fn emu_log2(x: f32) -> f32 {
    flush(libm::log2(flush(x).into()) as f32)
}

extern "C" fn emu_rsqrt(x: f32) -> f32 {
    flush((1.0 / libm::sqrt(flush(x).into())) as f32)
}

extern "C" fn emu_recip(x: f32) -> f32 {
    flush((1.0 / f64::from(flush(x))) as f32)
}

extern "C" fn emu_tanh(x: f32) -> f32 {
    libm::tanh(x.into()) as f32
}

// Routines that the code generator may call.

extern "C" fn fmaf(a: f32, b: f32, c: f32) -> f32 {
    libm::fmaf(a, b, c)
}

extern "C" fn fmodf(a: f32, b: f32) -> f32 {
    libm::fmodf(a, b)
}

extern "C" fn __truncsfbf2(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}

extern "C" fn __truncsfhf2(x: f32) -> u16 {
    half::f16::from_f32(x).to_bits()
}

extern "C" fn __extendhfsf2(x: u16) -> f32 {
    half::f16::from_bits(x).to_f32()
}
