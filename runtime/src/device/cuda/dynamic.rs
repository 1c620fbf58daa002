//! Libraries opened at run time.
//!
//! *Takes* a file name and a table of C functions; *gives* the functions, typed; *promises* that a missing library or function is a value, not a
//! failed start of the process: nothing is linked. Libraries are never closed, because those of NVIDIA keep threads of their own.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// `RTLD_NOW`.
const NOW: c_int = 2;

/// An open library.
pub(super) struct Library {
    handle: *mut c_void,
    name: String,
}

impl Library {
    /// Opens it. Error: why it cannot be.
    pub(super) fn open(name: &str) -> Result<Library, String> {
        let path = CString::new(name).map_err(|_| "the name of a library holds a zero byte".to_string())?;
        // SAFETY: a C string; the library's initialisers are its maker's own.
        let handle = unsafe { dlopen(path.as_ptr(), NOW) };
        if !handle.is_null() {
            return Ok(Library { handle, name: name.into() });
        }
        // SAFETY: the text of the failure just made on this thread, copied at once; null if there is none.
        let why = unsafe { dlerror().as_ref().map(|t| CStr::from_ptr(t).to_string_lossy().into_owned()) };
        Err(why.unwrap_or_else(|| format!("{name} cannot be opened")))
    }

    /// The address of a function. Error: there is none of that name.
    pub(super) fn symbol(&self, symbol: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: an open library and a C string.
        let found = unsafe { dlsym(self.handle, symbol.as_ptr()) };
        if found.is_null() {
            return Err(format!("{} has no {}", self.name, symbol.to_string_lossy()));
        }
        Ok(found)
    }
}

/// Declares a table of a library's functions, all of which give a code, 0 for success: a type with a method per function, which passes the code through
/// the type's `status`.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident fails with $error:ty; $($name:ident = $symbol:literal ($($arg:ident: $ty:ty),* $(,)?);)*) => {
        $(#[$doc])*
        pub(super) struct $table {
            $($name: unsafe extern "C" fn($($ty),*) -> c_int,)*
        }

        impl $table {
            fn table(library: &Library) -> Result<$table, String> {
                Ok($table {
                    // SAFETY: the symbol is a function of this signature (its header says), and function pointers are as wide as data pointers.
                    $($name: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> c_int>(library.symbol($symbol)?) },)*
                })
            }

            $(
                /// The library's function of that name.
                ///
                /// # Safety
                /// As the library's documentation says: handles are alive, pointers are valid for what it reads and writes.
                // Those that explain errors are called through the table: their own failure explains nothing.
                #[allow(clippy::too_many_arguments, dead_code)]
                pub(super) unsafe fn $name(&self, $($arg: $ty),*) -> Result<(), $error> {
                    // SAFETY: the caller's promise.
                    self.status(unsafe { (self.$name)($($arg),*) })
                }
            )*
        }
    };
}

pub(super) use table;
