//! A GPU: memory, copies, code, launches, time.
//!
//! *Takes* a device number; *gives* [`Gpu`] with one context and one stream, [`Allocation`]s, [`Module`]s, [`Function`]s, launches and
//! [`Event`]s; *promises* that everything happens in the order asked for (one stream), that a copy is complete when [`Gpu::download`] returns, and
//! that a failure says what was being done.
//!
//! Launches are safe to ask for: what a kernel does wrong with its pointers ends in an error of the device, not in this process's memory.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::cublaslt::{Cublas, Matmul};
use super::driver::{self, Address, Driver, Handle, KernelNode, Status};
use crate::error::{Error, Result};
use crate::plan::{DType, Product, TensorMap};

/// Pinned memory that copies pass through, bytes.
const STAGING: usize = 32 << 20;
/// Alignment of pieces in it.
const ALIGN: usize = 256;
/// Dynamic shared memory that needs no permission, bytes.
const PLAIN_SHARED: u32 = 48 << 10;

/// A device with its context and stream. Clones are the same device.
#[derive(Clone)]
pub struct Gpu(Rc<Inner>);

struct Inner {
    driver: Driver,
    device: c_int,
    context: Handle,
    stream: Handle,
    name: String,
    capability: (c_int, c_int),
    multiprocessors: u32,
    shared: u32,
    staging: RefCell<Staging>,
    /// Opened when the first product is made.
    cublas: RefCell<Option<Cublas>>,
}

/// A ring of pinned memory: what lies before `at` may still be read or written by copies under way.
struct Staging {
    start: *mut u8,
    at: usize,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let d = &self.driver;
        // SAFETY: made by `Gpu::open_with`, released once, in the order of dependence; every allocation, module and graph holds this
        // value and is gone. Failures leave nothing to be done.
        unsafe {
            let _ = d.set_current(self.context);
            let _ = d.stream_synchronize(self.stream);
            self.cublas.get_mut().take();
            let _ = d.host_free(self.staging.get_mut().start.cast());
            let _ = d.stream_destroy(self.stream);
            let _ = d.primary_release(self.device);
        }
    }
}

fn failed(what: &str) -> impl Fn(Status) -> Error {
    move |status| Error::machine(format!("{what} failed: {status}"))
}

/// Capability of the oldest devices that golfc makes code for, which all later ones run too.
const PORTABLE: c_int = 80;

impl Gpu {
    /// Device number `ordinal` of the machine's driver. Errors (exit 3): no or an old driver, no such device.
    pub fn open(ordinal: u32) -> Result<Gpu> {
        Gpu::open_with(Driver::open()?, ordinal)
    }

    /// Whether this machine has a driver at all.
    pub fn driver_installed() -> bool {
        driver::installed()
    }

    /// As [`Gpu::open`], with another driver library.
    #[cfg(test)]
    pub(super) fn open_named(library: &str, ordinal: u32) -> Result<Gpu> {
        Gpu::open_with(Driver::open_named(library)?, ordinal)
    }

    /// The same device, with this library for products.
    #[cfg(test)]
    pub(super) fn with_cublas(self, library: Cublas) -> Gpu {
        *self.0.cublas.borrow_mut() = Some(library);
        self
    }

    fn open_with(driver: Driver, ordinal: u32) -> Result<Gpu> {
        let d = &driver;
        let (mut count, mut device) = (0, 0);
        let asked = failed("asking for the GPUs");
        // SAFETY: writes one int.
        unsafe { d.device_count(&mut count) }.map_err(&asked)?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(Error::machine(match count {
                0 => "the NVIDIA driver finds no GPU; --device cpu runs without one".to_string(),
                1 => format!("there is no device cuda:{ordinal}: this machine has cuda:0 only"),
                n => format!("there is no device cuda:{ordinal}: this machine has cuda:0 to cuda:{}", n - 1),
            }));
        }
        let mut name = [0; 256];
        // SAFETY: writes one int; then at most that many characters with a zero at the end.
        unsafe {
            d.device_get(&mut device, ordinal as c_int).map_err(&asked)?;
            d.device_name(name.as_mut_ptr(), name.len() as c_int - 1, device).map_err(&asked)?;
        }
        // SAFETY: zero-terminated: the last element was never written.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |which| -> Result<c_int> {
            let mut value = 0;
            // SAFETY: writes one int.
            unsafe { d.device_attribute(&mut value, which, device) }.map_err(&asked)?;
            Ok(value)
        };
        let capability = (attribute(driver::CAPABILITY_MAJOR)?, attribute(driver::CAPABILITY_MINOR)?);
        let multiprocessors = attribute(driver::MULTIPROCESSORS)?.max(1) as u32;
        let shared = attribute(driver::SHARED_OPT_IN)?.max(0) as u32;
        let (mut context, mut stream, mut start) = (null_mut(), null_mut(), null_mut());
        // SAFETY: each writes one handle or pointer; the context is made current before what needs it.
        unsafe {
            d.primary_retain(&mut context, device).map_err(failed("opening the GPU"))?;
            let rest = (d.set_current(context))
                .and_then(|()| d.stream_create(&mut stream, driver::NON_BLOCKING))
                .and_then(|()| d.host_alloc(&mut start, STAGING));
            if let Err(status) = rest {
                let _ = d.primary_release(device);
                return Err(failed("opening the GPU")(status));
            }
        }
        let staging = RefCell::new(Staging { start: start.cast(), at: 0 });
        let cublas = RefCell::new(None);
        let inner =
            Inner { driver, device, context, stream, name, capability, multiprocessors, shared, staging, cublas };
        Ok(Gpu(Rc::new(inner)))
    }

    /// Name, e.g. `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Name and the CUDA version of its driver, for records.
    pub fn describe(&self) -> String {
        format!("{}, driver for CUDA {}", self.0.name, driver::version(self.0.driver.version))
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
    }

    /// Error (exit 3) unless code for `kind` (`sm_90a`, `sm_80`) runs here.
    pub fn fits(&self, kind: &str) -> Result<()> {
        self.choose(&[kind]).map(|_| ())
    }

    /// Number of the first kind of code that runs here: those with an `a` run on exactly that capability, others on it and all later ones. Error (exit 3): none
    /// does.
    pub fn choose(&self, kinds: &[&str]) -> Result<usize> {
        let (major, minor) = self.0.capability;
        let here = major * 10 + minor;
        let runs = |kind: &&str| {
            let digits = kind.trim_start_matches("sm_").trim_end_matches(|c: char| c.is_ascii_alphabetic());
            digits.parse::<c_int>().is_ok_and(|want| if kind.ends_with('a') { want == here } else { want <= here })
        };
        kinds.iter().position(runs).ok_or_else(|| {
            let advice = if here < PORTABLE {
                format!("golf needs sm_{PORTABLE} or later")
            } else {
                format!("golfc --target cpu,sm_{PORTABLE} makes code for it")
            };
            let (kinds, name) = (kinds.join(", "), &self.0.name);
            Error::machine(format!("this program has code for {kinds}; the device ({name}) is sm_{here}: {advice}"))
        })
    }

    /// Bytes free and in all.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        let d = self.enter()?;
        // SAFETY: writes two sizes.
        unsafe { d.memory_info(&mut free, &mut total) }.map_err(failed("asking for the GPU's memory"))?;
        Ok((free as u64, total as u64))
    }

    /// The driver, with this context current on this thread.
    fn enter(&self) -> Result<&Driver> {
        // SAFETY: the context is alive as long as `self`.
        unsafe { self.0.driver.set_current(self.0.context) }.map_err(failed("entering the GPU's context"))?;
        Ok(&self.0.driver)
    }

    /// Memory of that size, 256-byte aligned, zeroed. `None`: there is not enough.
    pub fn alloc(&self, bytes: u64) -> Result<Option<Allocation>> {
        let d = self.enter()?;
        let mut address = 0;
        // The driver refuses nothing at all.
        let size = bytes.max(1) as usize;
        // SAFETY: writes one address.
        match unsafe { d.memory_alloc(&mut address, size) } {
            Ok(()) => {}
            Err(status) if status.code == driver::OUT_OF_MEMORY => return Ok(None),
            Err(status) => return Err(failed("allocating on the GPU")(status)),
        }
        let made = Allocation { gpu: self.clone(), address, bytes };
        self.fill(&made, 0, bytes, 0)?;
        Ok(Some(made))
    }

    /// Sets `bytes` bytes at `offset`. Panics outside the allocation.
    pub fn fill(&self, to: &Allocation, offset: u64, bytes: u64, value: u8) -> Result<()> {
        let address = to.range(offset, bytes);
        if bytes == 0 {
            return Ok(());
        }
        let d = self.enter()?;
        // SAFETY: the range is inside a living allocation.
        unsafe { d.memset(address, value, bytes as usize, self.0.stream) }.map_err(failed("zeroing memory of the GPU"))
    }

    /// `len` bytes of pinned memory that nothing else uses before the next call.
    fn stage(&self, d: &Driver, len: usize) -> Result<*mut u8> {
        let mut s = self.0.staging.borrow_mut();
        if s.at + len > STAGING {
            // SAFETY: a living stream.
            unsafe { d.stream_synchronize(self.0.stream) }.map_err(|e| self.broken(e))?;
            s.at = 0;
        }
        let start = s.start.wrapping_add(s.at);
        s.at = (s.at + len).next_multiple_of(ALIGN);
        Ok(start)
    }

    /// Copies to the device, in order with launches. Panics outside the allocation.
    pub fn upload(&self, to: &Allocation, offset: u64, bytes: &[u8]) -> Result<()> {
        let address = to.range(offset, bytes.len() as u64);
        let d = self.enter()?;
        for (i, piece) in bytes.chunks(STAGING).enumerate() {
            let pinned = self.stage(d, piece.len())?;
            // SAFETY: `stage` gave that many bytes of pinned memory that no copy under way uses; the target is inside the allocation.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), pinned, piece.len());
                d.copy_to_device(address + (i * STAGING) as u64, pinned.cast(), piece.len(), self.0.stream)
            }
            .map_err(failed("a copy to the GPU"))?;
        }
        Ok(())
    }

    /// Waits for everything before it and copies from the device. Panics outside the allocation.
    pub fn download(&self, from: &Allocation, offset: u64, out: &mut [u8]) -> Result<()> {
        let address = from.range(offset, out.len() as u64);
        let d = self.enter()?;
        for (i, piece) in out.chunks_mut(STAGING).enumerate() {
            let pinned = self.stage(d, piece.len())?;
            // SAFETY: as in `upload`; the copy is complete after the wait.
            unsafe {
                d.copy_to_host(pinned.cast(), address + (i * STAGING) as u64, piece.len(), self.0.stream)
                    .map_err(|e| self.broken(e))?;
                d.stream_synchronize(self.0.stream).map_err(|e| self.broken(e))?;
                std::ptr::copy_nonoverlapping(pinned, piece.as_mut_ptr(), piece.len());
            }
            self.0.staging.borrow_mut().at = 0;
        }
        Ok(())
    }

    /// Waits until the device has done everything asked for. Errors of earlier launches appear here.
    pub fn synchronize(&self) -> Result<()> {
        let d = self.enter()?;
        // SAFETY: a living stream.
        unsafe { d.stream_synchronize(self.0.stream) }.map_err(|e| self.broken(e))?;
        self.0.staging.borrow_mut().at = 0;
        Ok(())
    }

    /// As [`Gpu::synchronize`], but gives up after `limit`: false, and the device is still at work.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let d = self.enter()?;
        let begin = Instant::now();
        loop {
            // SAFETY: a living stream.
            match unsafe { d.stream_query(self.0.stream) } {
                Ok(()) => return self.synchronize().map(|()| true),
                Err(status) if status.code != driver::NOT_READY => return Err(self.broken(status)),
                Err(_) if begin.elapsed() >= limit => return Ok(false),
                Err(_) => std::thread::sleep(Duration::from_micros(20)),
            }
        }
    }

    /// Work asked for earlier has failed.
    fn broken(&self, status: Status) -> Error {
        Error::machine(format!(
            "{}: {status}, in a kernel or copy before this point; GOLF_SYNC=1 in the environment finds the kernel",
            self.0.name
        ))
    }

    /// Assembles PTX texts, on all CPU threads. `progress` gets (done, of) from time to time.
    pub fn load_all(&self, texts: &[&str], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Module>> {
        self.load_each(texts, progress)?.into_iter().collect()
    }

    /// As [`Gpu::load_all`], with a result for each text.
    pub fn load_each(&self, texts: &[&str], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Result<Module>>> {
        self.enter()?;
        let all = super::modules::load(&self.0.driver, self.0.context, texts, progress)?;
        let module = |handle| Module(Rc::new(ModuleInner { gpu: self.clone(), handle }));
        Ok(all.into_iter().map(|one| one.map(module)).collect())
    }

    /// Assembles one PTX text.
    pub fn load(&self, text: &str) -> Result<Module> {
        let mut all = self.load_all(&[text], &mut |_, _| {})?;
        all.pop().ok_or_else(|| Error::machine("the NVIDIA driver gave no module"))
    }

    /// What the bulk copy engine needs to know about the tensor at `address` (the tensor's argument; the map's own offset is added).
    pub fn map(&self, m: &TensorMap, address: Address) -> Result<Map> {
        let d = self.enter()?;
        let mut map = Map([0; 16]);
        let dtype = if m.dtype == DType::F32 { 7 } else { 9 };
        let swizzle = match m.swizzle {
            0 => 0,
            32 => 1,
            64 => 2,
            _ => 3,
        };
        // One element each, and room for the strides of a tensor of one dimension, which are none.
        let (steps, mut strides) = ([1u32; 5], m.strides.clone());
        strides.resize(5, 0);
        // 256-byte lines of the L2 cache are fetched for rows that long, else 128.
        let promotion = if m.tile[0] as usize * m.dtype.bytes() >= 256 { 3 } else { 2 };
        // SAFETY: the arrays have `rank` elements (`rank - 1` strides); the map is 128 bytes, 128-byte aligned.
        unsafe {
            d.tensor_map(
                (&raw mut map).cast(),
                dtype,
                m.dims.len() as u32,
                (address + m.offset) as *mut c_void,
                m.dims.as_ptr(),
                strides.as_ptr(),
                m.tile.as_ptr(),
                steps.as_ptr(),
                0,
                swizzle,
                promotion,
                0,
            )
        }
        .map_err(|s| Error::machine(format!("the NVIDIA driver refuses a tensor map ({m:?}, a bug of golfc): {s}")))?;
        Ok(map)
    }

    /// Starts a kernel.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        self.start(launch).map_err(|s| Error::machine(format!("launching {} failed: {s}", launch.function.name)))
    }

    fn start(&self, l: &Launch) -> Result<(), Status> {
        let d = &self.0.driver;
        // SAFETY: the context and what the launch refers to are alive; it has as many parameters as the kernel takes, which golfc wrote
        // both; the driver copies them before it returns.
        unsafe {
            d.set_current(self.0.context)?;
            l.parameters(|parameters| {
                let (f, shared) = (l.function.handle, l.shared);
                d.launch(f, l.blocks, 1, 1, l.threads, 1, 1, shared, self.0.stream, parameters, null_mut())
            })
        }
    }

    /// Starts a kernel or a product.
    pub fn work(&self, work: &Work) -> Result<()> {
        let matmul = match work {
            Work::Kernel(launch) => return self.launch(launch),
            Work::Product(_, matmul) => matmul,
        };
        self.enter()?;
        // SAFETY: a living stream of the current context; the plan's places are inside living allocations.
        unsafe { matmul.start(self.0.stream) }
            .map_err(|why| Error::machine(format!("starting {} failed: {why}", work.name())))
    }

    /// A product by cuBLASLt on these addresses: A, B, D, workspace. Errors (exit 3): the library is not here, or does not do it.
    pub fn product(&self, name: &str, p: &Product, at: [Address; 4]) -> Result<Work> {
        self.enter()?;
        let mut cublas = self.0.cublas.borrow_mut();
        let library = match &*cublas {
            Some(library) => library.clone(),
            None => cublas.insert(Cublas::open()?).clone(),
        };
        Ok(Work::Product(name.into(), Box::new(library.product(name, p, at)?)))
    }

    /// What a product starts, as a graph.
    fn captured(&self, work: &Work) -> Result<GraphHandle> {
        let failed = |s: Status| Error::machine(format!("recording {} failed: {s}", work.name()));
        let d = self.enter()?;
        // SAFETY: a living stream.
        unsafe { d.capture_begin(self.0.stream, driver::CAPTURE_OF_THREAD) }.map_err(failed)?;
        let started = self.work(work);
        let mut made = GraphHandle { gpu: self.clone(), graph: null_mut() };
        // SAFETY: the stream is being captured; writes one handle, null if that failed.
        let ended = unsafe { d.capture_end(self.0.stream, &mut made.graph) };
        started.and(ended.map_err(failed)).map(|()| made)
    }

    /// A mark in the stream.
    pub fn event(&self) -> Result<Event> {
        let d = self.enter()?;
        let mut handle = null_mut();
        // SAFETY: writes one handle.
        unsafe { d.event_create(&mut handle, 0) }.map_err(failed("making an event"))?;
        Ok(Event { gpu: self.clone(), handle })
    }

    /// Does something and gives the device time it took, milliseconds.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (start, end) = (self.event()?, self.event()?);
        start.record()?;
        work()?;
        end.record()?;
        self.synchronize()?;
        start.until(&end)
    }

    /// Kernels and products as one graph: number `i` waits for those that `after[i]` names; the others may run side by side.
    pub fn graph(&self, all: &[Work], after: &[&[u32]]) -> Result<Graph> {
        let d = self.enter()?;
        let building = failed("building a graph of launches");
        let mut made = GraphHandle { gpu: self.clone(), graph: null_mut() };
        // SAFETY: writes one handle.
        unsafe { d.graph_create(&mut made.graph, 0) }.map_err(&building)?;
        let mut nodes: Vec<Handle> = Vec::with_capacity(all.len());
        for (work, after) in all.iter().zip(after) {
            let waits: Vec<Handle> = after.iter().map(|&i| nodes[i as usize]).collect();
            let mut node = null_mut();
            let added = match work {
                // SAFETY: as in `start`; the nodes waited for are of this graph.
                Work::Kernel(l) => unsafe {
                    l.parameters(|parameters| {
                        let what = KernelNode {
                            function: l.function.handle,
                            grid: [l.blocks, 1, 1],
                            block: [l.threads, 1, 1],
                            shared: l.shared,
                            parameters,
                            extra: null_mut(),
                            kernel: null_mut(),
                            context: null_mut(),
                        };
                        d.graph_kernel(&mut node, made.graph, waits.as_ptr(), waits.len(), &what)
                    })
                },
                Work::Product(..) => {
                    let child = self.captured(work)?;
                    // SAFETY: two living graphs, the child is copied; the nodes waited for are of this graph.
                    unsafe { d.graph_child(&mut node, made.graph, waits.as_ptr(), waits.len(), child.graph) }
                }
            };
            added.map_err(|s| Error::machine(format!("adding {} to a graph failed: {s}", work.name())))?;
            nodes.push(node);
        }
        let mut exec = null_mut();
        // SAFETY: writes one handle; the graph is complete and destroyed after this.
        unsafe { d.graph_instantiate(&mut exec, made.graph, 0) }.map_err(&building)?;
        let kernel = |work: &Work| match work {
            Work::Kernel(l) => Some(l.function.clone()),
            Work::Product(..) => None,
        };
        let functions = all.iter().filter_map(kernel).collect();
        Ok(Graph { gpu: self.clone(), exec, _functions: functions })
    }
}

/// Memory of a device; freed when dropped.
pub struct Allocation {
    gpu: Gpu,
    address: Address,
    bytes: u64,
}

impl Allocation {
    /// First address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn range(&self, offset: u64, bytes: u64) -> Address {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "{bytes} bytes at {offset} are outside an allocation of {}", self.bytes);
        self.address + offset
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Ok(d) = self.gpu.enter() {
            // SAFETY: allocated once, freed once; the driver waits for work that uses it.
            let _ = unsafe { d.memory_free(self.address) };
        }
    }
}

/// Assembled code.
#[derive(Clone)]
pub struct Module(Rc<ModuleInner>);

struct ModuleInner {
    gpu: Gpu,
    handle: Handle,
}

impl Drop for ModuleInner {
    fn drop(&mut self) {
        if let Ok(d) = self.gpu.enter() {
            // SAFETY: loaded once, unloaded once; functions hold the module.
            let _ = unsafe { d.module_unload(self.handle) };
        }
    }
}

impl Module {
    /// An entry, ready for launches of `threads` threads a block with `shared` bytes of dynamic shared memory.
    pub fn function(&self, name: &str, threads: u32, shared: u32) -> Result<Function> {
        let gpu = &self.0.gpu;
        let d = gpu.enter()?;
        let symbol = CString::new(name).map_err(|_| Error::input("a kernel's name holds a zero byte"))?;
        let wrong = |what: String| Error::machine(format!("kernel {name}: {what}; this is a bug of golfc"));
        let mut handle = null_mut();
        // SAFETY: a living module and a C string; writes one handle.
        unsafe { d.module_function(&mut handle, self.0.handle, symbol.as_ptr()) }
            .map_err(|s| wrong(format!("not found in its code, {s}")))?;
        if shared > gpu.0.shared {
            return Err(wrong(format!("asks for {shared} bytes of shared memory, a block may have {}", gpu.0.shared)));
        }
        if shared > PLAIN_SHARED {
            // SAFETY: a living function.
            unsafe { d.function_set(handle, driver::MAX_DYNAMIC_SHARED, shared as c_int) }
                .map_err(|s| wrong(format!("{shared} bytes of shared memory refused, {s}")))?;
        }
        let mut most = 0;
        // SAFETY: a living function; writes one int.
        unsafe { d.function_get(&mut most, driver::MAX_THREADS, handle) }.map_err(|s| wrong(s.to_string()))?;
        if i64::from(threads) > i64::from(most) {
            return Err(wrong(format!("launched with {threads} threads a block, its registers allow {most}")));
        }
        Ok(Function { module: self.clone(), handle, name: name.into() })
    }
}

/// A kernel. Holds its module.
#[derive(Clone)]
pub struct Function {
    #[allow(dead_code)]
    module: Module,
    handle: Handle,
    name: Rc<str>,
}

impl Function {
    /// Its symbol.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// `CUtensorMap`: opaque to everyone but driver and hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(128))]
pub struct Map([u64; 16]);

/// One launch: a one-dimensional grid of blocks; parameters are the pointers, then the maps.
#[derive(Clone)]
pub struct Launch {
    /// What.
    pub function: Function,
    /// Blocks.
    pub blocks: u32,
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Addresses.
    pub pointers: Vec<Address>,
    /// Tensor maps.
    pub maps: Vec<Map>,
}

impl Launch {
    /// The parameters as the driver takes them: the address of each.
    fn parameters<T>(&self, f: impl FnOnce(*mut *mut c_void) -> T) -> T {
        let pointers = self.pointers.iter().map(|p| std::ptr::from_ref(p).cast_mut().cast());
        let maps = self.maps.iter().map(|m| std::ptr::from_ref(m).cast_mut().cast());
        let mut all: Vec<*mut c_void> = pointers.chain(maps).collect();
        f(all.as_mut_ptr())
    }
}

/// A kernel or a product, ready to start.
pub enum Work {
    /// A kernel.
    Kernel(Launch),
    /// A product by cuBLASLt, and its name.
    Product(Rc<str>, Box<Matmul>),
}

impl Work {
    /// Symbol, for messages.
    pub fn name(&self) -> &str {
        match self {
            Work::Kernel(launch) => launch.function.name(),
            Work::Product(name, _) => name,
        }
    }
}

/// A point in the stream.
pub struct Event {
    gpu: Gpu,
    handle: Handle,
}

impl Event {
    /// Marks this point: after everything asked for so far.
    pub fn record(&self) -> Result<()> {
        let d = self.gpu.enter()?;
        // SAFETY: a living event and stream.
        unsafe { d.event_record(self.handle, self.gpu.0.stream) }.map_err(failed("recording an event"))
    }

    /// Milliseconds from this to a later event, both reached.
    pub fn until(&self, end: &Event) -> Result<f64> {
        let d = self.gpu.enter()?;
        let mut ms = 0.0f32;
        // SAFETY: two living events; writes one float.
        unsafe { d.event_elapsed(&mut ms, self.handle, end.handle) }.map_err(failed("reading an event"))?;
        Ok(f64::from(ms))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(d) = self.gpu.enter() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { d.event_destroy(self.handle) };
        }
    }
}

/// A graph being built.
struct GraphHandle {
    gpu: Gpu,
    graph: Handle,
}

impl Drop for GraphHandle {
    fn drop(&mut self) {
        if let (Ok(d), false) = (self.gpu.enter(), self.graph.is_null()) {
            // SAFETY: made once, destroyed once; an instantiated graph does not need it.
            let _ = unsafe { d.graph_destroy(self.graph) };
        }
    }
}

/// Launches that are started together.
pub struct Graph {
    gpu: Gpu,
    exec: Handle,
    _functions: Vec<Function>,
}

impl Graph {
    /// Starts all of it.
    pub fn launch(&self) -> Result<()> {
        let d = self.gpu.enter()?;
        // SAFETY: a living graph and stream.
        unsafe { d.graph_launch(self.exec, self.gpu.0.stream) }.map_err(failed("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(d) = self.gpu.enter() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { d.graph_exec_destroy(self.exec) };
        }
    }
}
