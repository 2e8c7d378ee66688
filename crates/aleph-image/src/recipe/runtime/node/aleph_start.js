// Starts a function: AWS's client with our connection to the runtime API, and what makes a clone
// of it unlike the others.
//
// A snapshot is taken after a function has loaded, and resumed many times: whatever was random
// before is the same in all of them, until `reseed` has run. The connection calls it once the
// runtime API has answered `restore/next`, before any event.
//
// What `reseed` cannot reach: generators of a function's own, and values that were drawn before.
"use strict";

const crypto = require("crypto");
const Module = require("module");
const connect = require("./rapid_client.js");

// How many the standard library draws ahead: `kBatchSize` of UUIDs, and of `randomInt` 6 KiB of
// numbers of 6 bytes.
const UUIDS_AHEAD = 128;
const INTEGERS_AHEAD = 1024;

// V8 seeds its own generator once, and cannot be asked to again.
const drawn = new Uint32Array(256);
let used = drawn.length;

function random() {
    if (used === drawn.length) {
        crypto.randomFillSync(drawn);
        used = 0;
    }
    const high = drawn[used++] >>> 5;
    const low = drawn[used++] >>> 6;
    return (high * 0x4000000 + low) / 0x20000000000000;
}

function reseed() {
    process.dlopen({ exports: {} }, "/var/runtime/reseed.node");
    used = drawn.length;
    for (let n = 0; n < UUIDS_AHEAD; n++) crypto.randomUUID();
    for (let n = 0; n < INTEGERS_AHEAD; n++) crypto.randomInt(2);
}

const isTemplate = process.env.AWS_LAMBDA_INITIALIZATION_TYPE === "snap-start";
if (isTemplate) Math.random = random;

const load = Module._load;
let connection;
Module._load = function (request, parent, isMain) {
    const native = request === "./rapid-client.node" && /aws-lambda-ric/.test(parent?.filename);
    if (!native) return load.call(this, request, parent, isMain);
    connection ??= connect(process.env.AWS_LAMBDA_RUNTIME_API, isTemplate ? reseed : undefined);
    return connection;
};

const handler = process.env._HANDLER;
if (!handler) {
    console.error("the environment has no _HANDLER: which function should run?");
    process.exit(1);
}
const root = process.env.LAMBDA_TASK_ROOT ?? "/var/task";
import("/var/runtime/node_modules/aws-lambda-ric/dist/index.mjs")
    .then(({ run }) => run(root, handler))
    // What a function throws while it is loaded, the client reports as it does what nobody catches.
    .catch((error) => setImmediate(() => { throw error; }));
