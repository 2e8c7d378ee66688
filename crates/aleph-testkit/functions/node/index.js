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
