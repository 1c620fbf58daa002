//! The NVIDIA driver, opened at run time.
//!
//! *Takes* nothing but `libcuda.so.1` (or the library that `GOLF_LIBCUDA` names, which tests use); *gives* [`Driver`], a table of the driver's
//! functions by their exact symbols, and [`Status`], a failed call in the driver's own words; *promises* that a machine without driver gets
//! a clear error, never a failed start of the process: nothing of CUDA is linked.
//!
//! A table of our own and not a crate of bindings: it is three dozen functions, their signatures have been stable since CUDA 12.0, and
//! bindings that panic for a missing library or symbol are no use where that is an ordinary error.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;

use super::dynamic::{Library, table};
use crate::error::{Error, Result};

/// The driver's opaque handles.
pub(super) type Handle = *mut c_void;
/// An address in device memory.
pub(super) type Address = u64;

/// Least driver, as `cuDriverGetVersion` counts: CUDA 12.0 has every function of the table.
const LEAST: c_int = 12_000;

/// `CU_DEVICE_ATTRIBUTE_*`.
pub(super) const MULTIPROCESSORS: c_int = 16;
pub(super) const CAPABILITY_MAJOR: c_int = 75;
pub(super) const CAPABILITY_MINOR: c_int = 76;
pub(super) const SHARED_OPT_IN: c_int = 97;
/// `CU_FUNC_ATTRIBUTE_*`.
pub(super) const MAX_THREADS: c_int = 0;
pub(super) const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_STREAM_NON_BLOCKING`.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(super) const CAPTURE_OF_THREAD: c_int = 1;
/// `CU_JIT_ERROR_LOG_BUFFER` and its size.
pub(super) const JIT_ERROR_LOG: c_int = 5;
pub(super) const JIT_ERROR_LOG_BYTES: c_int = 6;

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub(super) struct KernelNode {
    pub(super) function: Handle,
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared: c_uint,
    pub(super) parameters: *mut *mut c_void,
    pub(super) extra: *mut *mut c_void,
    pub(super) kernel: Handle,
    pub(super) context: Handle,
}

/// A failed call: `CUresult` with its name and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: c_int,
    text: String,
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_NOT_READY`.
pub(super) const NOT_READY: c_int = 600;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

unsafe extern "C" {
    fn _exit(code: c_int) -> !;
}

/// Ends the process at once with that code: what is left when a kernel never ends, for the driver's own tidying up would wait for it.
pub fn leave(code: i32) -> ! {
    // SAFETY: nothing of this process is used afterwards.
    unsafe { _exit(code) }
}

table! {
    /// Functions of the driver.
    Functions fails with Status;
    init = c"cuInit" (flags: c_uint);
    driver_version = c"cuDriverGetVersion" (version: *mut c_int);
    error_name = c"cuGetErrorName" (code: c_int, text: *mut *const c_char);
    error_string = c"cuGetErrorString" (code: c_int, text: *mut *const c_char);
    device_count = c"cuDeviceGetCount" (count: *mut c_int);
    device_get = c"cuDeviceGet" (device: *mut c_int, ordinal: c_int);
    device_name = c"cuDeviceGetName" (name: *mut c_char, len: c_int, device: c_int);
    device_attribute = c"cuDeviceGetAttribute" (value: *mut c_int, attribute: c_int, device: c_int);
    primary_retain = c"cuDevicePrimaryCtxRetain" (context: *mut Handle, device: c_int);
    primary_release = c"cuDevicePrimaryCtxRelease_v2" (device: c_int);
    set_current = c"cuCtxSetCurrent" (context: Handle);
    memory_info = c"cuMemGetInfo_v2" (free: *mut usize, total: *mut usize);
    memory_alloc = c"cuMemAlloc_v2" (address: *mut Address, bytes: usize);
    memory_free = c"cuMemFree_v2" (address: Address);
    host_alloc = c"cuMemAllocHost_v2" (pointer: *mut *mut c_void, bytes: usize);
    host_free = c"cuMemFreeHost" (pointer: *mut c_void);
    copy_to_device = c"cuMemcpyHtoDAsync_v2" (to: Address, from: *const c_void, bytes: usize, stream: Handle);
    copy_to_host = c"cuMemcpyDtoHAsync_v2" (to: *mut c_void, from: Address, bytes: usize, stream: Handle);
    memset = c"cuMemsetD8Async" (to: Address, value: u8, bytes: usize, stream: Handle);
    stream_create = c"cuStreamCreate" (stream: *mut Handle, flags: c_uint);
    stream_destroy = c"cuStreamDestroy_v2" (stream: Handle);
    stream_synchronize = c"cuStreamSynchronize" (stream: Handle);
    stream_query = c"cuStreamQuery" (stream: Handle);
    capture_begin = c"cuStreamBeginCapture_v2" (stream: Handle, mode: c_int);
    capture_end = c"cuStreamEndCapture" (stream: Handle, graph: *mut Handle);
    event_create = c"cuEventCreate" (event: *mut Handle, flags: c_uint);
    event_destroy = c"cuEventDestroy_v2" (event: Handle);
    event_record = c"cuEventRecord" (event: Handle, stream: Handle);
    event_elapsed = c"cuEventElapsedTime" (milliseconds: *mut f32, start: Handle, end: Handle);
    module_load = c"cuModuleLoadDataEx" (module: *mut Handle, image: *const c_void, options: c_uint, names: *mut c_int, values: *mut *mut c_void);
    module_unload = c"cuModuleUnload" (module: Handle);
    module_function = c"cuModuleGetFunction" (function: *mut Handle, module: Handle, name: *const c_char);
    function_set = c"cuFuncSetAttribute" (function: Handle, attribute: c_int, value: c_int);
    function_get = c"cuFuncGetAttribute" (value: *mut c_int, attribute: c_int, function: Handle);
    launch = c"cuLaunchKernel" (function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared: c_uint, stream: Handle, parameters: *mut *mut c_void, extra: *mut *mut c_void);
    tensor_map = c"cuTensorMapEncodeTiled" (map: *mut c_void, dtype: c_int, rank: c_uint, address: *mut c_void, dims: *const u64, strides: *const u64,
        tile: *const u32, steps: *const u32, interleave: c_int, swizzle: c_int, promotion: c_int, fill: c_int);
    graph_create = c"cuGraphCreate" (graph: *mut Handle, flags: c_uint);
    graph_destroy = c"cuGraphDestroy" (graph: Handle);
    graph_kernel = c"cuGraphAddKernelNode_v2" (node: *mut Handle, graph: Handle, after: *const Handle, count: usize, what: *const KernelNode);
    graph_child = c"cuGraphAddChildGraphNode" (node: *mut Handle, graph: Handle, after: *const Handle, count: usize, child: Handle);
    graph_instantiate = c"cuGraphInstantiateWithFlags" (exec: *mut Handle, graph: Handle, flags: u64);
    graph_exec_destroy = c"cuGraphExecDestroy" (exec: Handle);
    graph_launch = c"cuGraphLaunch" (exec: Handle, stream: Handle);
}

/// The library that is the driver.
fn library_name() -> String {
    std::env::var("GOLF_LIBCUDA").unwrap_or_else(|_| "libcuda.so.1".into())
}

/// Whether this machine has a driver at all.
pub(super) fn installed() -> bool {
    Library::open(&library_name()).is_ok()
}

/// `12080` as people write it.
pub(super) fn version(v: c_int) -> String {
    format!("{}.{}", v / 1000, v % 1000 / 10)
}

/// The driver, initialised.
pub(super) struct Driver {
    functions: Functions,
    /// As `cuDriverGetVersion` counts: 12080 is CUDA 12.8.
    pub(super) version: c_int,
}

impl std::ops::Deref for Driver {
    type Target = Functions;

    fn deref(&self) -> &Functions {
        &self.functions
    }
}

impl Driver {
    /// Opens and initialises the driver. Errors (exit 3): there is none, it is too old, it finds no device.
    pub(super) fn open() -> Result<Driver> {
        let name = library_name();
        Driver::open_named(&name)
    }

    pub(super) fn open_named(name: &str) -> Result<Driver> {
        let library = Library::open(name)
            .map_err(|why| Error::machine(format!("no NVIDIA driver: {why}; --device cpu runs without a GPU")))?;
        let functions = Functions::table(&library).map_err(|why| {
            let least = version(LEAST);
            Error::machine(format!("the NVIDIA driver is too old: {why}; CUDA {least} or newer is needed"))
        })?;
        let (mut driver, mut version) = (Driver { functions, version: 0 }, 0);
        // SAFETY: it may be called before `cuInit` and writes one int.
        unsafe { driver.driver_version(&mut version) }.map_err(|s| driver.no_device(&s))?;
        driver.version = version;
        driver.at_least(LEAST, "this program")?;
        // SAFETY: no pointers; the first call of the API.
        unsafe { driver.init(0) }.map_err(|s| driver.no_device(&s))?;
        Ok(driver)
    }

    /// Error (exit 3): the driver is older than `least`, which `what` needs.
    pub(super) fn at_least(&self, least: c_int, what: &str) -> Result<()> {
        if self.version >= least {
            return Ok(());
        }
        Err(Error::machine(format!(
            "the NVIDIA driver is too old: it is for CUDA {}, {what} needs {} or newer",
            version(self.version),
            version(least)
        )))
    }

    fn no_device(&self, status: &Status) -> Error {
        match status.code {
            NO_DEVICE => Error::machine("the NVIDIA driver finds no GPU; --device cpu runs without one"),
            _ => Error::machine(format!("the NVIDIA driver does not start: {status}")),
        }
    }
}

impl Functions {
    /// Success, or the code with the driver's name and text for it.
    fn status(&self, code: c_int) -> Result<(), Status> {
        if code == 0 {
            return Ok(());
        }
        let text = |f: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: writes one pointer to a static C string, or null for a code it does not know.
            unsafe {
                f(code, &mut text);
                text.as_ref().map(|t| CStr::from_ptr(t).to_string_lossy().into_owned())
            }
        };
        let text = match (text(self.error_string), text(self.error_name)) {
            (Some(text), Some(name)) => format!("{text} ({name})"),
            _ => format!("error {code} of the NVIDIA driver"),
        };
        Err(Status { code, text })
    }
}
