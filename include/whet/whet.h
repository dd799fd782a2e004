/* Run a Whet bundle from C: open, list inputs and outputs, run. No Python, no torch, no compiler.
 *
 * Every function that can fail returns a status; whet_last_error() then says in words what is wrong and the way out.
 * A module may be used by many threads at a time: calls take turns, each with all the cores that whet_open was given.
 * What is closed or freed must not be in use, or be used again.
 */
#ifndef WHET_WHET_H_
#define WHET_WHET_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WHET_API __attribute__((visibility("default")))
#else
#define WHET_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The newest formats that this runtime reads: of bundles for one target, and of fat bundles, which hold several. */
#define WHET_FORMAT_VERSION 2
#define WHET_FAT_FORMAT_VERSION 3

typedef enum whet_status {
  WHET_OK = 0,
  WHET_CANNOT_READ = 1,  /* no such file, no permission, no regular file */
  WHET_DAMAGED = 2,      /* truncated, altered, doctored, or no bundle at all */
  WHET_NEWER_FORMAT = 3, /* written by a newer Whet */
  WHET_OTHER_DEVICE = 4, /* compiled for another processor, operating system or accelerator */
  WHET_CANNOT_LOAD = 5,  /* the system refuses to load the code */
  WHET_BAD_INPUT = 6,    /* an input of another type or shape than the model takes; impossible arguments */
  WHET_NO_MEMORY = 7,
  WHET_RUN_FAILED = 8,   /* the compiled code reported an error */
  WHET_NOT_TRUSTED = 9,  /* not signed by a trusted key, or changed after it was signed */
  WHET_WRONG_KEY = 10,   /* encrypted, and the key is missing or another; or a key for a bundle that is not encrypted */
  WHET_NO_CRYPTOGRAPHY = 11 /* keys were given to a runtime that was built without libcrypto */
} whet_status;

/* Element types. bfloat16 is two bytes, the upper half of a float32; bool is one byte, 0 or 1. */
typedef enum whet_dtype {
  WHET_F64 = 0,
  WHET_F32 = 1,
  WHET_F16 = 2,
  WHET_BF16 = 3,
  WHET_I64 = 4,
  WHET_I32 = 5,
  WHET_I16 = 6,
  WHET_I8 = 7,
  WHET_U64 = 8,
  WHET_U32 = 9,
  WHET_U16 = 10,
  WHET_U8 = 11,
  WHET_BOOL = 12
} whet_dtype;

/* A loaded model with a session of its own; independent sessions of it; the outputs of one call. */
typedef struct whet_module whet_module;
typedef struct whet_session whet_session;
typedef struct whet_result whet_result;

/* A tensor in memory, row-major without gaps. Data at a multiple of 64 bytes is used where it lies, other is copied. */
typedef struct whet_tensor {
  const void* data;
  whet_dtype dtype;
  size_t rank;
  const int64_t* shape;
} whet_tensor;

/* What a model says of an input or output. A size that differs from call to call is -1 in `shape`; `text` is all of
 * it in words ("x: float32[s0, 8]"). The pointers live as long as the module. */
typedef struct whet_spec {
  const char* name;
  whet_dtype dtype;
  size_t rank;
  const int64_t* shape;
  const char* text;
} whet_spec;

/* What went wrong in the last call of this thread that did not return WHET_OK; valid until its next such call. */
WHET_API const char* whet_last_error(void);
/* The status in words ("damaged"). */
WHET_API const char* whet_status_name(whet_status status);
/* "float32" and so on, NULL for no type; bytes of an element, 0 for no type. */
WHET_API const char* whet_dtype_name(whet_dtype dtype);
WHET_API size_t whet_dtype_size(whet_dtype dtype);
/* Features of this processor by LLVM's names, sorted, with commas between: what bundles are held against. */
WHET_API const char* whet_processor_features(void);

/* Read and check a whole bundle for this device; none of its code is loaded and nothing is written. Of a fat bundle the
 * variant is taken that uses most of this processor, as whet.load does; the others are not read. */
WHET_API whet_status whet_verify(const char* path);

/* Check a bundle as whet_verify does, then load its code. `threads` is the number of cores that all compiled code of
 * this process uses, 0 for what the process has; at first TVM_NUM_THREADS where it is set, else the physical cores. */
WHET_API whet_status whet_open(const char* path, int threads, whet_module** module);
/* Keys of bundles. `trusted` are Ed25519 public keys (RFC 8032), 32 bytes each, one after the other, of which one must
 * have signed the bundle; NULL: it need not be signed. `key` are the 32 bytes that it is encrypted with
 * (ChaCha20-Poly1305, RFC 8439); NULL: only a bundle that is not encrypted is taken, otherwise only one that is. */
#define WHET_KEY_BYTES 32
typedef struct whet_keys {
  const uint8_t* trusted;
  size_t trusted_count;
  const uint8_t* key;
} whet_keys;

/* As whet_verify and whet_open; a signature is checked before anything of the bundle is used. `keys` may be NULL. */
WHET_API whet_status whet_verify_with(const char* path, const whet_keys* keys);
WHET_API whet_status whet_open_with(const char* path, int threads, const whet_keys* keys, whet_module** module);
/* Read a key into 32 bytes: a public one from a PEM file, one for encryption from a file with 32 bytes, raw or as
 * hexadecimal digits. */
WHET_API whet_status whet_read_public_key(const char* path, uint8_t* key);
WHET_API whet_status whet_read_key(const char* path, uint8_t* key);
/* Whether this runtime was built with libcrypto; without it, the functions that take keys return
 * WHET_NO_CRYPTOGRAPHY. */
WHET_API int whet_has_cryptography(void);

/* NULL is allowed, here and in the functions that free. Sessions and results of a module outlive it. */
WHET_API void whet_close(whet_module* module);

/* Use that many threads for all compiled code of this process from now on; and how many there are (0: none yet). */
WHET_API whet_status whet_set_threads(int threads);
WHET_API int whet_threads(void);

/* The target of the code; of a fat bundle, that of the variant that was taken. */
WHET_API const char* whet_target_name(const whet_module* module);
WHET_API size_t whet_input_count(const whet_module* module);
WHET_API size_t whet_output_count(const whet_module* module);
WHET_API whet_status whet_input(const whet_module* module, size_t index, whet_spec* spec);
WHET_API whet_status whet_output(const whet_module* module, size_t index, whet_spec* spec);

/* Run the model on all its inputs, in the order of whet_input. A model with state (caches, running statistics) goes on
 * from its last call. The result is the caller's, to be freed. */
WHET_API whet_status whet_run(whet_module* module, const whet_tensor* inputs, size_t count, whet_result** result);
/* Put the state back to its initial value. */
WHET_API whet_status whet_reset(whet_module* module);

/* A session with a state of its own, which begins at the initial value; a copy goes on from the present state. */
WHET_API whet_status whet_session_open(whet_module* module, whet_session** session);
WHET_API whet_status whet_session_copy(whet_session* session, whet_session** copy);
WHET_API whet_status whet_session_run(whet_session* session, const whet_tensor* inputs, size_t count,
                                      whet_result** result);
WHET_API whet_status whet_session_reset(whet_session* session);
WHET_API void whet_session_close(whet_session* session);

/* The outputs, in the order of whet_output; their memory lives as long as the result. */
WHET_API size_t whet_result_count(const whet_result* result);
WHET_API whet_status whet_result_get(const whet_result* result, size_t index, whet_tensor* tensor);
WHET_API void whet_result_free(whet_result* result);

#ifdef __cplusplus
}
#endif

#endif /* WHET_WHET_H_ */
