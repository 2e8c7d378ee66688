// Functions for tests, one for each way to end.
"use strict";

const crypto = require("crypto");

exports.echo = async (event, context) => {
    console.log("handling", context.awsRequestId);
    return event;
};

exports.callback = (event, context, callback) => callback(null, event);

exports.error = async (event) => {
    throw new TypeError(event.message || "as asked");
};

// Nobody catches it: it is thrown outside of the handler's promise.
exports.uncaught = () => new Promise(() => {
    setTimeout(() => {
        throw new RangeError("from a timer");
    }, 1);
});

exports.crash = async () => process.exit(3);

exports.hang = () => new Promise(() => setInterval(() => {}, 1000));

exports.env = async () => ({ env: process.env, cwd: process.cwd(), version: process.version });

// Answers piece by piece, each of which is a line of its number: `pieces` of `size` bytes. With
// `fail` it fails behind them, with `status` it says which status an HTTP response has.
exports.stream = awslambda.streamifyResponse(async (event, out) => {
    let to = out;
    if (event.status) {
        const prelude = { statusCode: event.status, headers: { "x-own": "1" }, cookies: ["a=1"] };
        to = awslambda.HttpResponseStream.from(out, prelude);
    } else {
        out.setContentType("text/plain");
    }
    for (let piece = 0; piece < event.pieces; piece++) {
        const line = String(piece).padStart(event.size - 1) + "\n";
        if (!to.write(line)) await new Promise((resolve) => to.once("drain", resolve));
    }
    if (event.fail) throw new RangeError(event.fail);
    to.end();
});

// Everything that is drawn here is drawn before a snapshot.
Math.random();
crypto.randomUUID();

// What no two clones may have in common.
exports.noise = async () => ({
    random: Math.random(),
    uuid: crypto.randomUUID(),
    bytes: crypto.randomBytes(16).toString("hex"),
    web: Buffer.from(crypto.webcrypto.getRandomValues(new Uint8Array(16))).toString("hex"),
});
