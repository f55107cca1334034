// wrpo.node: opens libtorch by absolute path, nothing else. Where libtorch lies is known only at run time; once it is
// loaded, the dynamic linker satisfies the core's NEEDED entries with it by SONAME, so neither an rpath nor
// LD_LIBRARY_PATH is needed. Plain C without libtorch, so that it always loads and can say what is wrong.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <node_api.h>
#include <stdlib.h>

// libgomp reads the first once, when it is loaded: by default its idle threads spin and fight with every other process
// for the cores. With the second cuBLAS gives the same bits for the same input. A constructor runs once, whichever
// thread comes first; the user's own settings win.
__attribute__((constructor)) static void setDefaults(void) {
  setenv("OMP_WAIT_POLICY", "passive", 0);
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
}

// preload(path): RTLD_LOCAL, since the core finds libtorch through its own dependencies; RTLD_NODELETE, since libtorch
// keeps threads and thread-local state and must outlive any worker that loaded it.
static napi_value preload(napi_env env, napi_callback_info info) {
  napi_value argument = NULL;
  char path[PATH_MAX];
  size_t argc = 1, length = 0;
  if (napi_get_cb_info(env, info, &argc, &argument, NULL, NULL) != napi_ok || argc < 1 ||
      napi_get_value_string_utf8(env, argument, path, sizeof path, &length) != napi_ok || length == sizeof path - 1) {
    napi_throw_error(env, "ERR_NATIVE_LOAD", "preload expects the path of a shared library.");
  } else if (!dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
    napi_throw_error(env, "ERR_NATIVE_LOAD", dlerror());
  }
  return NULL;
}

NAPI_MODULE_INIT() {
  napi_value function;
  if (napi_create_function(env, "preload", NAPI_AUTO_LENGTH, preload, NULL, &function) != napi_ok ||
      napi_set_named_property(env, exports, "preload", function) != napi_ok) {
    napi_throw_error(env, "ERR_NATIVE_LOAD", "wrpo.node could not register itself.");
  }
  return exports;
}
