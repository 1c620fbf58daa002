//! Every foreign call of the compiler: LLVM's C API, and `dlopen` for kernels that tests run in-process.
//!
//! *Takes* MLIR modules in the LLVM dialect; *gives* safe wrappers: [`Machine`], [`Llvm`], [`Library`]; *promises* that no other
//! module of golfc (the GPU emulator apart) needs `unsafe`. melior links LLVM statically, so plain declarations resolve to the same copy.
#![allow(unsafe_code)]

use melior::ir::Module;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

type Raw = *mut c_void;

#[repr(C)]
struct RawOperation {
    ptr: Raw,
}

unsafe extern "C" {
    fn mlirTranslateModuleToLLVMIR(module: RawOperation, context: Raw) -> Raw;
    fn LLVMContextCreate() -> Raw;
    fn LLVMContextDispose(context: Raw);
    fn LLVMContextSetDiagnosticHandler(
        context: Raw,
        handler: Option<unsafe extern "C" fn(info: Raw, data: Raw)>,
        data: Raw,
    );
    fn LLVMGetDiagInfoDescription(info: Raw) -> *mut c_char;
    fn LLVMGetDiagInfoSeverity(info: Raw) -> c_uint;
    fn LLVMDisposeMessage(message: *mut c_char);
    fn LLVMDisposeModule(module: Raw);
    fn LLVMInitializeX86TargetInfo();
    fn LLVMInitializeX86Target();
    fn LLVMInitializeX86TargetMC();
    fn LLVMInitializeX86AsmPrinter();
    fn LLVMInitializeNVPTXTargetInfo();
    fn LLVMInitializeNVPTXTarget();
    fn LLVMInitializeNVPTXTargetMC();
    fn LLVMInitializeNVPTXAsmPrinter();
    fn LLVMGetTargetFromTriple(triple: *const c_char, out: *mut Raw, error: *mut *mut c_char) -> c_int;
    fn LLVMCreateTargetMachine(
        target: Raw,
        triple: *const c_char,
        cpu: *const c_char,
        features: *const c_char,
        level: c_uint,
        relocation: c_uint,
        code_model: c_uint,
    ) -> Raw;
    fn LLVMDisposeTargetMachine(machine: Raw);
    fn LLVMCreateTargetDataLayout(machine: Raw) -> Raw;
    fn LLVMDisposeTargetData(layout: Raw);
    fn LLVMSetTarget(module: Raw, triple: *const c_char);
    fn LLVMSetModuleDataLayout(module: Raw, layout: Raw);
    fn LLVMSetSourceFileName(module: Raw, name: *const c_char, length: usize);
    fn LLVMSetModuleIdentifier(module: Raw, name: *const c_char, length: usize);
    fn LLVMGetFirstFunction(module: Raw) -> Raw;
    fn LLVMGetNextFunction(function: Raw) -> Raw;
    fn LLVMIsDeclaration(function: Raw) -> c_int;
    fn LLVMAddTargetDependentFunctionAttr(function: Raw, key: *const c_char, value: *const c_char);
    fn LLVMCreatePassBuilderOptions() -> Raw;
    fn LLVMDisposePassBuilderOptions(options: Raw);
    fn LLVMRunPasses(module: Raw, passes: *const c_char, machine: Raw, options: Raw) -> Raw;
    fn LLVMGetErrorMessage(error: Raw) -> *mut c_char;
    fn LLVMDisposeErrorMessage(message: *mut c_char);
    fn LLVMTargetMachineEmitToMemoryBuffer(
        machine: Raw,
        module: Raw,
        kind: c_uint,
        error: *mut *mut c_char,
        out: *mut Raw,
    ) -> c_int;
    fn LLVMGetBufferStart(buffer: Raw) -> *const u8;
    fn LLVMGetBufferSize(buffer: Raw) -> usize;
    fn LLVMDisposeMemoryBuffer(buffer: Raw);
    fn LLVMCreateMemoryBufferWithMemoryRangeCopy(data: *const u8, length: usize, name: *const c_char) -> Raw;
    fn LLVMParseIRInContext(context: Raw, buffer: Raw, module: *mut Raw, error: *mut *mut c_char) -> c_int;
    fn gnu_get_libc_version() -> *const c_char;
    fn LLVMPrintModuleToString(module: Raw) -> *mut c_char;
    fn LLVMGetVersion(major: *mut c_uint, minor: *mut c_uint, patch: *mut c_uint);
    fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
    fn dlopen(path: *const c_char, flags: c_int) -> Raw;
    fn dlsym(library: Raw, symbol: *const c_char) -> Raw;
    fn dlclose(library: Raw) -> c_int;
    fn dlerror() -> *mut c_char;
}

/// What to emit from an LLVM module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// Assembly text.
    Assembly,
    /// A relocatable object.
    Object,
}

/// Version of the linked LLVM, `major.minor.patch`; part of every cache key.
pub fn llvm_version() -> String {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: three valid pointers to integers, written and not kept.
    unsafe { LLVMGetVersion(&mut major, &mut minor, &mut patch) };
    format!("{major}.{minor}.{patch}")
}

/// Version of the C library golfc runs on, such as `2.36`: executables made here need it or a newer one.
pub fn glibc_version() -> String {
    // SAFETY: returns a static NUL-terminated string.
    unsafe { CStr::from_ptr(gnu_get_libc_version()).to_string_lossy().into_owned() }
}

/// CPU time this thread has used: measures code on a machine that others use too.
pub fn thread_time() -> Duration {
    const THREAD_CPU_TIME: c_int = 3;
    let mut time = [0i64; 2];
    // SAFETY: on x86-64 Linux a timespec is two 64-bit integers; the pointer is valid for the call.
    unsafe { clock_gettime(THREAD_CPU_TIME, &mut time) };
    Duration::new(time[0] as u64, time[1] as u32)
}

fn text(bytes: &str) -> CString {
    // Names and options come from golfc itself and never hold a NUL.
    CString::new(bytes.replace('\0', "")).unwrap_or_default()
}

/// Copies a C string that LLVM allocated and frees it.
fn take_message(message: *mut c_char) -> String {
    if message.is_null() {
        return "no message".into();
    }
    // SAFETY: LLVM returned a NUL-terminated string of its own, freed here once.
    unsafe {
        let copy = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeMessage(message);
        copy
    }
}

/// A target machine: the code generator for one CPU kind.
pub struct Machine {
    raw: Raw,
    triple: CString,
    function_attributes: Vec<(CString, CString)>,
}

impl Machine {
    /// An x86-64 Linux machine for a CPU name and LLVM feature string (`+avx512bf16`); every function also gets `attributes`.
    pub fn x86(cpu: &str, features: &str, attributes: &[(&str, &str)]) -> Result<Machine, String> {
        static TARGETS: Once = Once::new();
        // SAFETY: registration only; `Once` keeps it from running twice or concurrently.
        TARGETS.call_once(|| unsafe {
            LLVMInitializeX86TargetInfo();
            LLVMInitializeX86Target();
            LLVMInitializeX86TargetMC();
            LLVMInitializeX86AsmPrinter();
        });
        Machine::new("x86_64-unknown-linux-gnu", cpu, features, attributes)
    }

    /// A GPU of NVIDIA, `sm_90a` for example; [`Llvm::emit`] gives PTX as [`File::Assembly`].
    pub fn nvptx(cpu: &str, features: &str) -> Result<Machine, String> {
        static TARGETS: Once = Once::new();
        // SAFETY: registration only; `Once` keeps it from running twice or concurrently.
        TARGETS.call_once(|| unsafe {
            LLVMInitializeNVPTXTargetInfo();
            LLVMInitializeNVPTXTarget();
            LLVMInitializeNVPTXTargetMC();
            LLVMInitializeNVPTXAsmPrinter();
        });
        Machine::new("nvptx64-nvidia-cuda", cpu, features, &[])
    }

    fn new(triple: &str, cpu: &str, features: &str, attributes: &[(&str, &str)]) -> Result<Machine, String> {
        let triple = text(triple);
        let (mut target, mut error) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a NUL-terminated triple and two valid out pointers.
        if unsafe { LLVMGetTargetFromTriple(triple.as_ptr(), &mut target, &mut error) } != 0 {
            return Err(format!("llvm has no target for {triple:?}: {}", take_message(error)));
        }
        const AGGRESSIVE: c_uint = 3;
        const PIC: c_uint = 2;
        const DEFAULT_MODEL: c_uint = 0;
        let (cpu, features) = (text(cpu), text(features));
        // SAFETY: `target` is valid, strings are NUL-terminated and copied by LLVM.
        let raw = unsafe {
            LLVMCreateTargetMachine(
                target,
                triple.as_ptr(),
                cpu.as_ptr(),
                features.as_ptr(),
                AGGRESSIVE,
                PIC,
                DEFAULT_MODEL,
            )
        };
        if raw.is_null() {
            return Err(format!("llvm refuses the cpu {cpu:?} with features {features:?}"));
        }
        let mut function_attributes = vec![(text("target-cpu"), cpu), (text("target-features"), features)];
        function_attributes.extend(attributes.iter().map(|(k, v)| (text(k), text(v))));
        Ok(Machine { raw, triple, function_attributes })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: created by `new`, disposed once.
        unsafe { LLVMDisposeTargetMachine(self.raw) }
    }
}

/// An LLVM module in a context of its own.
pub struct Llvm {
    context: Raw,
    module: Raw,
    /// Boxed so that its address is stable: LLVM's diagnostic handler writes here.
    errors: Box<Errors>,
}

#[derive(Default)]
struct Errors(Vec<String>);

unsafe extern "C" fn collect(info: Raw, data: Raw) {
    const ERROR: c_uint = 0;
    // SAFETY: LLVM passes a live diagnostic and the pointer given in `empty`, which lives as long as the context.
    unsafe {
        if LLVMGetDiagInfoSeverity(info) == ERROR {
            (*(data as *mut Errors)).0.push(take_message(LLVMGetDiagInfoDescription(info)));
        }
    }
}

impl Llvm {
    /// Translates an MLIR module that holds only LLVM-dialect operations, and marks it for `machine`.
    pub fn translate(module: &Module, name: &str, machine: &Machine) -> Result<Llvm, String> {
        let mut llvm = Llvm::empty();
        let operation = RawOperation { ptr: module.as_operation().to_raw().ptr };
        // SAFETY: the operation is live and the context fresh; the new module is owned by `llvm`.
        llvm.module = unsafe { mlirTranslateModuleToLLVMIR(operation, llvm.context) };
        if llvm.module.is_null() {
            return Err(format!("{name}: translation to llvm failed {}", llvm.errors.0.join("; ")));
        }
        llvm.mark(name, machine);
        Ok(llvm)
    }

    /// Parses LLVM IR text and marks it for `machine`.
    pub fn parse(source: &str, name: &str, machine: &Machine) -> Result<Llvm, String> {
        let mut llvm = Llvm::empty();
        let label = text(name);
        let mut error = std::ptr::null_mut();
        // SAFETY: the buffer copies `source` and is consumed by the parser, whatever its result; the out pointers are valid.
        let failed = unsafe {
            let buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(source.as_ptr(), source.len(), label.as_ptr());
            LLVMParseIRInContext(llvm.context, buffer, &mut llvm.module, &mut error)
        };
        if failed != 0 {
            return Err(format!("{name}: llvm does not parse: {}", take_message(error)));
        }
        llvm.mark(name, machine);
        Ok(llvm)
    }

    fn empty() -> Llvm {
        let mut errors = Box::<Errors>::default();
        // SAFETY: a fresh context; the handler's data lives in a box that is dropped after the context.
        let context = unsafe {
            let context = LLVMContextCreate();
            LLVMContextSetDiagnosticHandler(context, Some(collect), (&mut *errors as *mut Errors).cast());
            context
        };
        Llvm { context, module: std::ptr::null_mut(), errors }
    }

    /// Names the module and gives it the machine's triple, layout and function attributes.
    fn mark(&mut self, name: &str, machine: &Machine) {
        // SAFETY: module and machine are live; the layout is copied into the module before it is disposed; strings are copied.
        unsafe {
            LLVMSetTarget(self.module, machine.triple.as_ptr());
            let layout = LLVMCreateTargetDataLayout(machine.raw);
            LLVMSetModuleDataLayout(self.module, layout);
            LLVMDisposeTargetData(layout);
            LLVMSetModuleIdentifier(self.module, name.as_ptr().cast(), name.len());
            LLVMSetSourceFileName(self.module, name.as_ptr().cast(), name.len());
            let mut function = LLVMGetFirstFunction(self.module);
            while !function.is_null() {
                if LLVMIsDeclaration(function) == 0 {
                    for (key, value) in &machine.function_attributes {
                        LLVMAddTargetDependentFunctionAttr(function, key.as_ptr(), value.as_ptr());
                    }
                }
                function = LLVMGetNextFunction(function);
            }
        }
    }

    /// Runs a textual pass pipeline such as `default<O3>`.
    pub fn optimize(&mut self, machine: &Machine, passes: &str) -> Result<(), String> {
        let passes = text(passes);
        // SAFETY: module and machine are live; the options are disposed here, the error message (if any) is freed once.
        unsafe {
            let options = LLVMCreatePassBuilderOptions();
            let error = LLVMRunPasses(self.module, passes.as_ptr(), machine.raw, options);
            LLVMDisposePassBuilderOptions(options);
            if error.is_null() {
                return Ok(());
            }
            let message = LLVMGetErrorMessage(error);
            let copy = CStr::from_ptr(message).to_string_lossy().into_owned();
            LLVMDisposeErrorMessage(message);
            Err(format!("llvm passes failed: {copy}"))
        }
    }

    /// Emits an object or assembly into memory. Changes the module: print it before.
    pub fn emit(&mut self, machine: &Machine, file: File) -> Result<Vec<u8>, String> {
        let kind = match file {
            File::Assembly => 0,
            File::Object => 1,
        };
        let (mut error, mut buffer) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: live module and machine, valid out pointers; the buffer is copied and disposed once.
        unsafe {
            if LLVMTargetMachineEmitToMemoryBuffer(machine.raw, self.module, kind, &mut error, &mut buffer) != 0 {
                return Err(format!("llvm code generation failed: {}", take_message(error)));
            }
            let bytes = std::slice::from_raw_parts(LLVMGetBufferStart(buffer), LLVMGetBufferSize(buffer)).to_vec();
            LLVMDisposeMemoryBuffer(buffer);
            if self.errors.0.is_empty() {
                Ok(bytes)
            } else {
                Err(format!("llvm code generation failed: {}", self.errors.0.join("; ")))
            }
        }
    }

    /// LLVM IR as text.
    pub fn print(&self) -> String {
        // SAFETY: the module is live; the returned string is freed by `take_message`.
        take_message(unsafe { LLVMPrintModuleToString(self.module) })
    }
}

impl Drop for Llvm {
    fn drop(&mut self) {
        // SAFETY: both are owned; the module (if translation succeeded) goes before its context, each once.
        unsafe {
            if !self.module.is_null() {
                LLVMDisposeModule(self.module);
            }
            LLVMContextDispose(self.context);
        }
    }
}

/// A generated kernel function, see `golf_runtime::plan::KernelFn`.
pub type Function = unsafe extern "C" fn(task: u64, args: *const *mut u8, scratch: *mut u8);

/// An argument of [`Library::run`]: bytes from the start of a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) buffer: usize,
    pub(super) offset: usize,
}

/// A shared library of generated kernels, loaded into this process: how tests and `golfc`'s own checks run what was compiled.
pub struct Library {
    raw: Raw,
}

impl Library {
    /// Loads a shared object that golfc has just linked.
    pub fn open(path: &Path) -> Result<Library, String> {
        const NOW: c_int = 2;
        let name = text(&path.to_string_lossy());
        // SAFETY: a NUL-terminated path; the library holds only generated code, which has no initialisers.
        let raw = unsafe { dlopen(name.as_ptr(), NOW) };
        if raw.is_null() {
            // SAFETY: after a failure dlerror gives a NUL-terminated string valid until the next dl call.
            let why = unsafe { CStr::from_ptr(dlerror()).to_string_lossy().into_owned() };
            return Err(format!("{}: {why}", path.display()));
        }
        Ok(Library { raw })
    }

    /// Runs `symbol` for tasks in the given order. `args` and `scratch` are memory of the caller.
    ///
    /// The generated code trusts its description: buffers must be at least as large as the kernel says, 64-byte aligned. Every buffer is
    /// checked to be aligned here; sizes are the caller's promise, which [`super::jit`] keeps by allocating them itself.
    pub(super) fn run(
        &self,
        symbol: &str,
        tasks: impl Iterator<Item = u64>,
        args: &mut [Aligned],
        order: &[Place],
        scratch: &mut Aligned,
    ) -> Result<(), String> {
        let name = text(symbol);
        // SAFETY: the library is open and the name NUL-terminated.
        let found = unsafe { dlsym(self.raw, name.as_ptr()) };
        if found.is_null() {
            return Err(format!("symbol {symbol} is not in the library"));
        }
        // SAFETY: every symbol golfc generates has this type.
        let function: Function = unsafe { std::mem::transmute::<Raw, Function>(found) };
        let base: Vec<*mut u8> = args.iter_mut().map(|a| a.as_mut_ptr()).collect();
        let inside = order.iter().all(|p| p.offset <= args[p.buffer].bytes);
        if !inside {
            return Err(format!("{symbol} is passed memory outside its buffer"));
        }
        // SAFETY: each offset is inside its buffer, as just checked.
        let pointers: Vec<*mut u8> = order.iter().map(|p| unsafe { base[p.buffer].add(p.offset) }).collect();
        for task in tasks {
            // SAFETY: pointers are live, aligned and exclusively borrowed for the call; sizes as promised above.
            unsafe { function(task, pointers.as_ptr(), scratch.as_mut_ptr()) };
        }
        Ok(())
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; no function pointer outlives `run`.
        unsafe { dlclose(self.raw) };
    }
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// 64-byte aligned bytes, as the runtime's segments are, followed by a guard line that kernels must not touch.
pub struct Aligned {
    lines: Vec<Line>,
    bytes: usize,
}

impl Aligned {
    /// A buffer of `bytes` bytes filled with 0xFF, which reads as NaN in every float dtype.
    pub fn poisoned(bytes: usize) -> Aligned {
        Aligned { lines: vec![Line([0xFF; 64]); bytes.div_ceil(64) + 1], bytes }
    }

    /// A copy of `content`.
    pub fn of(content: &[u8]) -> Aligned {
        let mut a = Aligned::poisoned(content.len());
        a.bytes_mut().copy_from_slice(content);
        a
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.lines.as_flattened_bytes()[..self.bytes]
    }

    /// The content, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes;
        // SAFETY: `Line` is 64 plain bytes without padding.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<u8>(), self.lines.len() * 64) };
        &mut all[..bytes]
    }

    /// Makes it exactly `bytes` long, poisoned anew unless it already is.
    pub fn grow(&mut self, bytes: usize) {
        if self.bytes != bytes {
            *self = Aligned::poisoned(bytes);
        }
    }

    /// False if something was written beyond the end.
    pub fn guard_intact(&self) -> bool {
        self.lines.as_flattened_bytes()[self.bytes..].iter().all(|&b| b == 0xFF)
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
}

trait Flatten {
    fn as_flattened_bytes(&self) -> &[u8];
}

impl Flatten for Vec<Line> {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: `Line` is 64 plain bytes without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast::<u8>(), self.len() * 64) }
    }
}
