//! Runtimes of functions, without a VM: each image is this kernel's root for a process, which
//! asks a server on loopback for events.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::{Image, NoProgress, Recipe, task};
use aleph_testkit::{functions, recipe_image};
use host::runtime_api::RuntimeApi;
use host::{Need, State, inside, run, trial, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

fn main() {
    let needs = [
        Need::Mount,
        Need::Root,
        Need::Apt,
        Need::Tool("mkfs.erofs"),
        Need::Tool("mmdebstrap"),
    ];
    let python = [&needs[..], &[Need::Tool("pip3")]].concat();
    let node = [&needs[..], &[Need::Tool("npm")]].concat();
    run(vec![
        trial(
            "alone_provided_runs_a_native_function",
            &needs,
            native_function,
        ),
        trial(
            "alone_provided_says_what_is_missing",
            &needs,
            missing_bootstrap,
        ),
        trial("alone_python_answers_events", &python, python_events),
        trial(
            "alone_python_asks_to_be_restored_first",
            &python,
            python_restore,
        ),
        trial("alone_python_is_compiled", &python, python_compiled),
        trial("alone_node_answers_events", &node, node_events),
        trial("alone_node_asks_to_be_restored_first", &node, node_restore),
        trial(
            "alone_a_handler_that_is_a_program_is_begun",
            &[&python[..], &node].concat(),
            programs,
        ),
    ]);
}

/// A function on its runtime, ended when it is dropped.
struct Function {
    child: Child,
    api: RuntimeApi,
    _code: tempfile::TempDir,
}

impl Function {
    fn start(recipe: Recipe, zip: &[u8], handler: &str, env: &[(&str, &str)]) -> Self {
        let image = recipe_image(recipe).unwrap();
        let code = tempfile::tempdir().unwrap();
        let task = task::build(zip, code.path()).unwrap();
        let api = RuntimeApi::new();
        let config = &image.record().config;
        let mut variables = config.env.clone();
        let own = [
            ("AWS_LAMBDA_RUNTIME_API", &*api.address),
            ("AWS_LAMBDA_FUNCTION_NAME", "test"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/test"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "stream"),
            ("_HANDLER", handler),
        ];
        for (name, value) in own.iter().chain(env) {
            variables.insert((*name).to_owned(), (*value).to_owned());
        }
        let root = code.path().join("root");
        std::fs::create_dir(&root).unwrap();
        // In namespaces of its own: what is mounted goes with it.
        let script = "set -e; root=$1; \
            mount -t erofs -o loop,ro \"$2\" \"$root\"; \
            mount -t erofs -o loop,ro \"$3\" \"$root/var/task\"; \
            mount -t tmpfs none \"$root/tmp\"; mount --rbind /dev \"$root/dev\"; \
            mount -t proc proc \"$root/proc\"; shift 3; \
            exec chroot \"$root\" /usr/bin/env -i \"$@\"";
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(&root)
            .arg(image.rootfs())
            .arg(&task.path)
            .args(
                variables
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            )
            .args(["/bin/sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"])
            .arg(config.workdir.as_deref().unwrap())
            .args(&config.entrypoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            child,
            api,
            _code: code,
        }
    }

    /// Sends an event and gives the answer: `response` or `error`.
    fn invoke(&self, id: &str, event: &Value, expected: &str) -> Value {
        self.api.send(id, &event.to_string());
        let asked = self.api.wait(&format!("POST invocation/{id}/{expected}"));
        asked.json()
    }

    /// How it ended, and what it wrote.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("the function's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (status.unwrap(), self.written())
    }

    /// Ends it, and gives what it wrote.
    fn end(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.written()
    }

    fn written(&mut self) -> String {
        let mut written = String::new();
        let (out, err) = (self.child.stdout.take(), self.child.stderr.take());
        out.unwrap().read_to_string(&mut written).unwrap();
        err.unwrap().read_to_string(&mut written).unwrap();
        written
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What every runtime's image says of itself.
fn check_config(image: &Image) {
    let config = &image.record().config;
    assert_eq!(config.entrypoint, ["/var/runtime/bootstrap"]);
    assert_eq!(config.workdir.as_deref(), Some("/var/task"));
    let known = |name: &str| config.env.get(name).map(String::as_str);
    assert_eq!(known("LAMBDA_TASK_ROOT"), Some("/var/task"));
    assert_eq!(known("LAMBDA_RUNTIME_DIR"), Some("/var/runtime"));
    assert_eq!(known("TZ"), Some(":UTC"));
    let facts = inside(
        image,
        "test -x var/runtime/bootstrap && test -d var/task && test -d opt && \
         stat -c %a tmp && grep -c BEGIN etc/ssl/certs/ca-certificates.crt && \
         chroot . /bin/bash -c 'set -o pipefail; date -d @0 +%Z; curl --version | head -c 4; id -un'",
    );
    let lines: Vec<&str> = facts.lines().collect();
    assert_eq!(lines[0], "1777");
    assert!(lines[1].parse::<u32>().unwrap() > 100);
    assert_eq!(lines[2..], ["UTC", "curlroot"]);
}

fn native_function() {
    let image = recipe_image(Recipe::ProvidedAl2023).unwrap();
    check_config(&image);
    assert!(image.record().size < 40 << 20, "{}", image.record().size);
    let zip = functions::echo_zip().unwrap();
    let function = Function::start(Recipe::ProvidedAl2023, &zip, "any", &[]);
    let event = json!({"name": "you", "n": 1});
    assert_eq!(function.invoke("1", &event, "response"), event);
    let error = function.invoke("2", &json!({"error": "no"}), "error");
    assert_eq!(error["errorMessage"], "no");
    assert_eq!(function.invoke("3", &event, "response"), event);
    function.api.send("4", &json!({"exit": 7}).to_string());
    let (status, written) = function.ended();
    assert_eq!(status.code(), Some(7), "{written}");

    let env = [("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")];
    let function = Function::start(Recipe::ProvidedAl2023, &zip, "any", &env);
    function.api.wait("GET restore/next");
    function.api.send("1", &event.to_string());
    assert_eq!(function.api.asked(), ["GET restore/next"]);
    function.api.restore();
    function.api.wait("POST invocation/1/response");
}

fn missing_bootstrap() {
    let zip = functions::zip(&[("README", 0o644, b"x")]).unwrap();
    let (status, written) = Function::start(Recipe::ProvidedAl2023, &zip, "", &[]).ended();
    assert_eq!(status.code(), Some(127));
    assert!(written.contains("there is no bootstrap"), "{written}");
    let zip = functions::zip(&[("bootstrap", 0o644, b"#!/bin/sh\n")]).unwrap();
    let (status, written) = Function::start(Recipe::ProvidedAl2023, &zip, "", &[]).ended();
    assert_eq!(status.code(), Some(126));
    assert!(written.contains("is not executable"), "{written}");
    // A script by the tools that Lambda's guide for such programs uses.
    let script = br#"#!/bin/bash
set -euo pipefail
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
headers=$(mktemp)
event=$(curl -sS -LD "$headers" "$api/next")
id=$(grep -Fi Lambda-Runtime-Aws-Request-Id "$headers" | tr -d '[:space:]' | cut -d: -f2)
curl -sS "$api/$id/response" -d "$event"
"#;
    let zip = functions::zip(&[("bootstrap", 0o755, script)]).unwrap();
    let function = Function::start(Recipe::ProvidedAl2023, &zip, "", &[]);
    assert_eq!(function.invoke("1", &json!([1]), "response"), json!([1]));
    let (status, written) = function.ended();
    assert_eq!(status.code(), Some(0), "{written}");
}

/// A server needs no client: what the handler names is begun where it is a program.
fn programs() {
    let script = b"#!/bin/sh\necho begun as $0 in $PWD >&2\nexit 6\n";
    for recipe in [Recipe::Python311, Recipe::Nodejs18] {
        let zip = functions::zip(&[("run.sh", 0o755, script)]).unwrap();
        let function = Function::start(recipe, &zip, "run.sh", &[]);
        let (status, written) = function.ended();
        assert_eq!(status.code(), Some(6), "{recipe:?}: {written}");
        assert_eq!(
            written, "begun as /var/task/run.sh in /var/task\n",
            "{recipe:?}"
        );
        // What nobody may run is a module's name, as ever.
        let zip = functions::zip(&[("run.sh", 0o644, script)]).unwrap();
        let function = Function::start(recipe, &zip, "run.sh", &[]);
        function.api.wait("POST init/error");
        assert!(!function.ended().1.contains("begun"), "{recipe:?}");
    }
}

fn python(handler: &str, env: &[(&str, &str)]) -> Function {
    let zip = functions::python_zip().unwrap();
    Function::start(Recipe::Python311, &zip, handler, env)
}

fn python_events() {
    check_config(&recipe_image(Recipe::Python311).unwrap());
    let function = python("app.echo", &[]);
    let event = json!({"text": "\u{fc}", "list": [1, 2.5, null]});
    assert_eq!(function.invoke("id-1", &event, "response"), event);
    assert_eq!(function.invoke("id-2", &json!("x"), "response"), json!("x"));
    assert!(function.end().contains("handling id-1"));

    let function = python("app.error", &[]);
    let error = function.invoke("1", &json!({"message": "why"}), "error");
    assert_eq!(error["errorType"], "ValueError");
    assert_eq!(error["errorMessage"], "why");
    assert!(
        error["stackTrace"][0]
            .as_str()
            .unwrap()
            .contains("/var/task/app.py")
    );
    // It goes on.
    function.invoke("2", &json!({}), "error");

    let function = python("app.env", &[("MINE", "yes")]);
    let told = function.invoke("1", &json!({}), "response");
    assert_eq!(told["cwd"], "/var/task");
    assert_eq!(told["path"][0], "/var/task");
    assert_eq!(told["env"]["MINE"], "yes");
    assert_eq!(told["env"]["_HANDLER"], "app.env");

    let function = python("app.crash", &[]);
    function.api.send("1", "{}");
    assert_eq!(function.ended().0.code(), Some(3));

    let function = python("nothing.there", &[]);
    let error = function.api.wait("POST init/error");
    assert_eq!(error.json()["errorType"], "Runtime.ImportModuleError");
    assert!(!function.ended().0.success());
}

/// With the type of initialisation that a template has, it waits before the first event, and
/// what is random is new after that.
fn python_restore() {
    let zip = functions::zip(&[("app.py", 0o644, RESTORED.as_bytes())]).unwrap();
    let env = [("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")];
    let function = Function::start(Recipe::Python311, &zip, "app.drawn", &env);
    function.api.wait("GET restore/next");
    function.api.send("1", "{}");
    assert_eq!(function.api.asked(), ["GET restore/next"]);
    function.api.restore();
    let drawn = function.api.wait("POST invocation/1/response").json();
    assert_eq!(
        function.api.asked()[..2],
        ["GET restore/next", "GET invocation/next"]
    );
    let drawn: BTreeMap<String, Value> = serde_json::from_value(drawn).unwrap();
    let state = |name: &str| &drawn[name];
    assert_eq!(state("random_is_new"), true, "{drawn:?}");
    assert_eq!(state("uuid_is_new"), true, "{drawn:?}");
    // The generators of both threads of this process have a new seed: OpenSSL counts them.
    for name in ["primary", "public", "private", "public_of_thread"] {
        let before = state("before")[name].as_u64().unwrap();
        let after = state("after")[name].as_u64().unwrap();
        assert!(after > before, "{name}: {drawn:?}");
    }
    drop(function);

    // Without, there is nothing to wait for.
    let function = python("app.echo", &[]);
    assert_eq!(function.invoke("1", &json!(1), "response"), json!(1));
    assert!(
        !function
            .api
            .asked()
            .contains(&"GET restore/next".to_owned())
    );
}

/// Looks how often OpenSSL's generators were seeded, and compares what is drawn after a restore
/// with what the same state would have given without one.
const RESTORED: &str = r#"
import ctypes, random, ssl, threading, uuid
from concurrent.futures import ThreadPoolExecutor

lib = ctypes.CDLL("libcrypto.so.3")

class Param(ctypes.Structure):
    _fields_ = [("key", ctypes.c_char_p), ("data_type", ctypes.c_uint), ("data", ctypes.c_void_p),
                ("data_size", ctypes.c_size_t), ("return_size", ctypes.c_size_t)]

def count(name):
    get = getattr(lib, "RAND_get0_" + name)
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    value = ctypes.c_uint(0)
    # OSSL_PARAM_UNSIGNED_INTEGER
    params = (Param * 2)(Param(b"reseed_counter", 2, ctypes.addressof(value), 4, 0), Param())
    lib.EVP_RAND_CTX_get_params.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert lib.EVP_RAND_CTX_get_params(get(None), ctypes.byref(params)) == 1
    return value.value

pool = ThreadPoolExecutor(1)

def counts():
    # Both of a thread's generators see that the first one was seeded when they are used.
    ssl.RAND_bytes(1)
    byte = ctypes.create_string_buffer(1)
    assert lib.RAND_priv_bytes(byte, 1) == 1
    counted = {name: count(name) for name in ("primary", "public", "private")}
    def of_thread():
        ssl.RAND_bytes(1)
        return count("public")
    return counted | {"public_of_thread": pool.submit(of_thread).result()}

before = counts()
uuid.getnode()
node = uuid._node
expected = random.Random()
expected.setstate(random.getstate())

def drawn(event, context):
    return {
        "before": before,
        "after": counts(),
        "random_is_new": random.getrandbits(64) != expected.getrandbits(64),
        "uuid_is_new": uuid._node != node and uuid.uuid1().node == uuid._node,
    }
"#;

fn python_compiled() {
    let image = recipe_image(Recipe::Python311).unwrap();
    // In a root that cannot be written nothing is compiled but what the function brings.
    let traced = inside(
        &image,
        "chroot . /usr/bin/env PYTHONPATH=/var/runtime python3.11 -v -c \
         'import awslambdaric.bootstrap, ssl, http.client, email.mime.text, asyncio' 2>&1 | \
         grep -c -e 'code object from .*[.]py$' -e stale || true",
    );
    assert_eq!(traced.trim(), "0");
    let sources = inside(
        &image,
        "find usr/lib/python3.11 var/runtime -name '*.py' | \
         while read -r f; do c=$(dirname \"$f\")/__pycache__/$(basename \"$f\" .py).cpython-311.pyc; \
         [ -e \"$c\" ] || echo \"$f\"; done",
    );
    assert_eq!(sources, "");
    // The same packages are the same image, compiled modules and all.
    let state = State::new();
    let again = state
        .store()
        .build(Recipe::Python311, &mut NoProgress)
        .unwrap();
    assert_eq!(again.digest(), image.digest());
    // Nothing is left of the work, and nothing is mounted.
    assert_eq!(state.left().len(), 2, "{:?}", state.left());
}

fn node(handler: &str, env: &[(&str, &str)]) -> Function {
    let zip = functions::node_zip().unwrap();
    Function::start(Recipe::Nodejs18, &zip, handler, env)
}

fn node_events() {
    check_config(&recipe_image(Recipe::Nodejs18).unwrap());
    let event = json!({"text": "\u{fc}", "list": [1, 2.5, null]});
    for handler in ["index.echo", "index.callback"] {
        let function = node(handler, &[]);
        assert_eq!(function.invoke("id-1", &event, "response"), event);
        assert_eq!(function.invoke("id-2", &json!("x"), "response"), json!("x"));
    }
    let function = node("index.echo", &[]);
    function.invoke("id-1", &event, "response");
    assert!(function.end().contains("handling id-1"));

    let function = node("index.error", &[]);
    let error = function.invoke("1", &json!({"message": "why"}), "error");
    assert_eq!(
        (&error["errorType"], &error["errorMessage"]),
        (&json!("TypeError"), &json!("why"))
    );
    // It goes on.
    function.invoke("2", &json!({}), "error");
    let asked = function.api.wait("POST invocation/1/error");
    assert_eq!(
        asked.headers["lambda-runtime-function-error-type"],
        "TypeError"
    );

    let function = node("index.env", &[("MINE", "yes")]);
    let told = function.invoke("1", &json!({}), "response");
    assert_eq!(
        (&told["cwd"], &told["env"]["MINE"]),
        (&json!("/var/task"), &json!("yes"))
    );
    assert!(told["version"].as_str().unwrap().starts_with("v18."));

    // What ends the process is told before its end.
    let function = node("index.uncaught", &[]);
    let error = function.invoke("1", &json!({}), "error");
    assert_eq!(error["errorType"], "RangeError");
    assert_eq!(function.ended().0.code(), Some(129));
    let function = node("index.crash", &[]);
    function.api.send("1", "{}");
    assert_eq!(function.ended().0.code(), Some(3));

    let function = node("nothing.there", &[]);
    let error = function.api.wait("POST init/error");
    assert_eq!(error.json()["errorType"], "Runtime.ImportModuleError");
    assert!(!function.ended().0.success());
}

fn node_restore() {
    let zip = functions::zip(&[("index.js", 0o644, DRAWN_AHEAD.as_bytes())]).unwrap();
    let env = [("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")];
    let function = Function::start(Recipe::Nodejs18, &zip, "index.drawn", &env);
    function.api.wait("GET restore/next");
    function.api.send("1", "{}");
    assert_eq!(function.api.asked(), ["GET restore/next"]);
    function.api.restore();
    let drawn = function.api.wait("POST invocation/1/response").json();
    assert_eq!(
        drawn,
        json!({"polled": true, "uuid": true, "integer": true, "random": true})
    );
    drop(function);

    let function = node("index.noise", &[]);
    let (one, two) = (
        function.invoke("1", &json!({}), "response"),
        function.invoke("2", &json!({}), "response"),
    );
    for name in ["random", "uuid", "bytes", "web"] {
        assert_ne!(one[name], two[name], "{name}");
    }
    assert!(
        !function
            .api
            .asked()
            .contains(&"GET restore/next".to_owned())
    );
    drop(function);

    // The module that polls makes OpenSSL count a new seed: this Python can look.
    let image = recipe_image(Recipe::Nodejs18).unwrap();
    let module = inside(&image, "base64 -w0 var/runtime/reseed.node");
    let module = format!("MODULE = \"{}\"\n{RESTORED}{POLLED}", module.trim());
    let zip = functions::zip(&[("app.py", 0o644, module.as_bytes())]).unwrap();
    let function = Function::start(Recipe::Python311, &zip, "app.polled", &[]);
    let polled = function.invoke("1", &json!({}), "response");
    for name in ["primary", "public", "private", "public_of_thread"] {
        assert!(
            polled["after"][name].as_u64() > polled["before"][name].as_u64(),
            "{polled}"
        );
    }
}

/// Catches what the standard library has drawn ahead, and whether the module was loaded.
const DRAWN_AHEAD: &str = r#"
const crypto = require("crypto");
crypto.randomUUID();
crypto.randomInt(2);
Math.random();
const fill = crypto.randomFillSync;
let filled = 0;
crypto.randomFillSync = (...all) => (filled++, fill(...all));
// One draw less than would make the library draw again by itself.
let loaded = false;
const dlopen = process.dlopen;
process.dlopen = (module, path, ...rest) => {
    loaded = path.endsWith("/reseed.node");
    return dlopen.call(process, module, path, ...rest);
};
const uuids = [];
const randomUUID = crypto.randomUUID;
crypto.randomUUID = (...all) => { uuids.push(1); return randomUUID(...all); };
const integers = [];
const randomInt = crypto.randomInt;
crypto.randomInt = (...all) => { integers.push(1); return randomInt(...all); };
exports.drawn = async () => {
    const before = filled;
    Math.random();
    return {
        polled: loaded,
        uuid: uuids.length >= 127,
        integer: integers.length >= 1023,
        random: filled > before,
    };
};
"#;

/// Loads the module as Node.js does, and calls what Node.js would call.
const POLLED: &str = r#"
import base64, tempfile
def polled(event, context):
    before = counts()
    with tempfile.NamedTemporaryFile() as file:
        file.write(base64.b64decode(MODULE))
        file.flush()
        own = ctypes.CDLL(None)
        own.dlopen.restype, own.dlopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
        own.dlsym.restype, own.dlsym.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
        ctypes.CDLL("libcrypto.so.3", mode=ctypes.RTLD_GLOBAL)
        # RTLD_LAZY: Node.js's own functions are not here, and not called.
        module = own.dlopen(file.name.encode(), 1)
        start = own.dlsym(module, b"napi_register_module_v1")
        ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(start)(None, None)
    return {"before": before, "after": counts()}
"#;
