//! Products by cuBLASLt, opened at run time.
//!
//! *Takes* `libcublasLt.so` (or the library that `GOLF_LIBCUBLASLT` names) and the [`Product`]s of a plan; *gives* [`Cublas`] and [`Matmul`]s ready to start;
//! *promises* that a program whose plan names no product never opens it, that the algorithm is chosen once, for the exact shapes and addresses and within the plan's
//! workspace, and that a missing library is a clear error.
//!
//! cuBLASLt's matrices are column-major: it is asked for `Dᵀ = Bᵀ Aᵀ`.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

use super::driver::{Address, Handle};
use super::dynamic::{Library, table};
use crate::error::{Error, Result};
use crate::plan::{DType, Factor, Product};

/// Where it is looked for, newest first.
const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];

/// `CUBLAS_COMPUTE_32F`, `CUDA_R_32F`, `CUDA_R_16BF`.
const COMPUTE: c_int = 68;
const FLOAT: c_int = 0;
const BF16: c_int = 14;
/// `CUBLASLT_MATMUL_DESC_TRANSA`, `_TRANSB`.
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
/// `CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT`, `_STRIDED_BATCH_OFFSET`.
const BATCH: c_int = 5;
const BATCH_STRIDE: c_int = 6;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`, `_REDUCTION_SCHEME_MASK`, `_MIN_ALIGNMENT_A_BYTES` to `_D_BYTES`.
const WORKSPACE: c_int = 1;
const REDUCTIONS: c_int = 3;
const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
/// Sums of pieces of k in f32 in the workspace, not in place by atomics: the same bits every time.
const IN_WORKSPACE: u32 = 2;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Choice {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

table! {
    /// Functions of cuBLASLt.
    Functions fails with String;
    create = c"cublasLtCreate" (made: *mut Handle);
    destroy = c"cublasLtDestroy" (handle: Handle);
    operation_create = c"cublasLtMatmulDescCreate" (made: *mut Handle, compute: c_int, scale: c_int);
    operation_destroy = c"cublasLtMatmulDescDestroy" (operation: Handle);
    operation_set = c"cublasLtMatmulDescSetAttribute" (operation: Handle, attribute: c_int, value: *const c_void, bytes: usize);
    layout_create = c"cublasLtMatrixLayoutCreate" (made: *mut Handle, dtype: c_int, rows: u64, columns: u64, pitch: i64);
    layout_destroy = c"cublasLtMatrixLayoutDestroy" (layout: Handle);
    layout_set = c"cublasLtMatrixLayoutSetAttribute" (layout: Handle, attribute: c_int, value: *const c_void, bytes: usize);
    preference_create = c"cublasLtMatmulPreferenceCreate" (made: *mut Handle);
    preference_destroy = c"cublasLtMatmulPreferenceDestroy" (preference: Handle);
    preference_set = c"cublasLtMatmulPreferenceSetAttribute" (preference: Handle, attribute: c_int, value: *const c_void, bytes: usize);
    heuristic = c"cublasLtMatmulAlgoGetHeuristic" (handle: Handle, operation: Handle, a: Handle, b: Handle, c: Handle, d: Handle,
        preference: Handle, asked: c_int, results: *mut Choice, found: *mut c_int);
    matmul = c"cublasLtMatmul" (handle: Handle, operation: Handle, alpha: *const f32, a: Address, a_layout: Handle, b: Address, b_layout: Handle,
        beta: *const f32, c: Address, c_layout: Handle, d: Address, d_layout: Handle, algorithm: *const [u64; 8], workspace: Address, bytes: usize,
        stream: Handle);
}

impl Functions {
    /// Success, or the code in words.
    fn status(&self, code: c_int) -> Result<(), String> {
        let what = match code {
            0 => return Ok(()),
            1 => "not initialised",
            3 => "out of memory",
            7 => "an invalid value",
            8 => "not for this GPU",
            13 => "the GPU failed",
            15 => "not supported",
            _ => "failed",
        };
        Err(format!("{what} (status {code} of cuBLASLt)"))
    }
}

/// What an object is, which says how it ends.
#[derive(Clone, Copy)]
enum Kind {
    Library,
    Operation,
    Layout,
    Preference,
}

/// An object of the library.
struct Object {
    functions: Rc<Functions>,
    kind: Kind,
    handle: Handle,
}

impl Drop for Object {
    fn drop(&mut self) {
        let f = &self.functions;
        // SAFETY: made once, destroyed once; failures leave nothing to be done.
        let _ = unsafe {
            match self.kind {
                Kind::Library => f.destroy(self.handle),
                Kind::Operation => f.operation_destroy(self.handle),
                Kind::Layout => f.layout_destroy(self.handle),
                Kind::Preference => f.preference_destroy(self.handle),
            }
        };
    }
}

impl Object {
    /// An object that `make` puts where it is told.
    fn new(
        functions: &Rc<Functions>,
        kind: Kind,
        make: impl FnOnce(&Functions, *mut Handle) -> Result<(), String>,
    ) -> Result<Object, String> {
        let mut handle = null_mut();
        make(functions, &mut handle)?;
        Ok(Object { functions: functions.clone(), kind, handle })
    }

    /// Sets an attribute of an operation, layout or preference.
    fn set<T>(&self, attribute: c_int, value: T) -> Result<(), String> {
        let (f, value, bytes) = (&self.functions, (&raw const value).cast(), size_of::<T>());
        // SAFETY: a living object of that kind; the value has the attribute's type and is copied.
        unsafe {
            match self.kind {
                Kind::Operation => f.operation_set(self.handle, attribute, value, bytes),
                Kind::Layout => f.layout_set(self.handle, attribute, value, bytes),
                Kind::Preference => f.preference_set(self.handle, attribute, value, bytes),
                Kind::Library => Err("a library has no attributes".into()),
            }
        }
    }
}

/// The library, ready for the current context. Clones are the same one.
#[derive(Clone)]
pub struct Cublas(Rc<Object>);

impl Cublas {
    /// Opens it; a context must be current. Error (exit 3): it is not here, for which this program's plan has a use.
    pub(super) fn open() -> Result<Cublas> {
        match std::env::var("GOLF_LIBCUBLASLT") {
            Ok(name) => Cublas::open_named(&[&name]),
            Err(_) => Cublas::open_named(&NAMES),
        }
    }

    pub(super) fn open_named(names: &[&str]) -> Result<Cublas> {
        let mut why = String::new();
        for name in names {
            match Library::open(name).and_then(|library| Functions::table(&library)) {
                Ok(functions) => {
                    let functions = Rc::new(functions);
                    // SAFETY: writes one handle; the caller's context is current.
                    let made = Object::new(&functions, Kind::Library, |f, to| unsafe { f.create(to) });
                    return made.map(|o| Cublas(Rc::new(o))).map_err(|e| missing(&e));
                }
                Err(reason) => why = reason,
            }
        }
        Err(missing(&why))
    }

    /// A product on these addresses: A, B, D, workspace. `name` is for messages. Error (exit 3): the library does not do it within the workspace.
    pub(super) fn product(&self, name: &str, p: &Product, at: [Address; 4]) -> Result<Matmul> {
        Matmul::new(self, p, at).map_err(|why| {
            Error::machine(format!(
                "cuBLASLt does not do {name} ({} x {} x {}, {} times), which the program's tuning table gives it: {why}; compile without that line",
                p.m, p.n, p.k, p.batch
            ))
        })
    }
}

fn missing(why: &str) -> Error {
    Error::machine(format!(
        "this program's tuning table gives products to cuBLASLt, which cannot be used here: {why}; compile it without --tuning, or install the library of CUDA 12 or 13"
    ))
}

/// A product with its algorithm.
pub struct Matmul {
    library: Cublas,
    operation: Object,
    /// Of Bᵀ, Aᵀ and Dᵀ.
    layouts: [Object; 3],
    algorithm: [u64; 8],
    /// 1 where D is added to.
    beta: f32,
    /// B, A, D.
    at: [Address; 3],
    workspace: Address,
    bytes: usize,
}

impl Matmul {
    fn new(library: &Cublas, p: &Product, [a, b, d, workspace]: [Address; 4]) -> Result<Matmul, String> {
        let f = &library.0.functions;
        // SAFETY: each writes one handle.
        let operation = Object::new(f, Kind::Operation, |f, to| unsafe { f.operation_create(to, COMPUTE, FLOAT) })?;
        operation.set(TRANSPOSE_A, c_int::from(p.b.inner))?;
        operation.set(TRANSPOSE_B, c_int::from(!p.a.inner))?;
        let layout = |x: &Factor, inner: u64, other: u64| -> Result<Object, String> {
            let (rows, columns) = if x.inner { (inner, other) } else { (other, inner) };
            let dtype = if x.dtype == DType::F32 { FLOAT } else { BF16 };
            // SAFETY: writes one handle.
            let layout = Object::new(f, Kind::Layout, |f, to| unsafe {
                f.layout_create(to, dtype, rows, columns, x.pitch as i64)
            })?;
            layout.set(BATCH, p.batch as c_int)?;
            layout.set(BATCH_STRIDE, x.batch as i64)?;
            Ok(layout)
        };
        let layouts = [layout(&p.b, p.k, p.n)?, layout(&p.a, p.k, p.m)?, layout(&p.d, p.n, p.m)?];
        let first = |x: &Factor, at: Address| at + x.offset * x.dtype.bytes() as u64;
        let at = [first(&p.b, b), first(&p.a, a), first(&p.d, d)];
        // SAFETY: writes one handle.
        let preference = Object::new(f, Kind::Preference, |f, to| unsafe { f.preference_create(to) })?;
        preference.set(WORKSPACE, p.workspace)?;
        preference.set(REDUCTIONS, IN_WORKSPACE)?;
        for (attribute, address) in ALIGNMENTS.iter().zip([at[0], at[1], at[2], at[2]]) {
            preference.set(*attribute, 1u32 << address.trailing_zeros().min(8))?;
        }
        let (mut choice, mut found) = (Choice::default(), 0);
        let [x, y, z] = layouts.each_ref().map(|l| l.handle);
        // SAFETY: living objects; writes at most one result and one int.
        unsafe {
            f.heuristic(library.0.handle, operation.handle, x, y, z, z, preference.handle, 1, &mut choice, &mut found)?;
        }
        if found < 1 || choice.state != 0 || choice.workspace as u64 > p.workspace {
            return Err(format!("it has no algorithm for it within {} bytes", p.workspace));
        }
        let (algorithm, beta) = (choice.algorithm, if p.accumulate { 1.0 } else { 0.0 });
        let bytes = p.workspace as usize;
        Ok(Matmul { library: library.clone(), operation, layouts, algorithm, beta, at, workspace, bytes })
    }

    /// Starts it.
    ///
    /// # Safety
    /// The stream is alive and of the context the library was opened in, which is current; the addresses hold what the product says until it has ended.
    pub(super) unsafe fn start(&self, stream: Handle) -> Result<(), String> {
        let [x, y, z] = self.layouts.each_ref().map(|l| l.handle);
        let [b, a, d] = self.at;
        // SAFETY: living objects; the two factors are read before it returns; the rest is the caller's promise.
        unsafe {
            self.library.0.functions.matmul(
                self.library.0.handle,
                self.operation.handle,
                &1.0,
                b,
                x,
                a,
                y,
                &self.beta,
                d,
                z,
                d,
                z,
                &self.algorithm,
                self.workspace,
                self.bytes,
                stream,
            )
        }
    }
}
