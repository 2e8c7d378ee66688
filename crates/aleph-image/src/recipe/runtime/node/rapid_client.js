// What the native module of AWS's client does, over HTTP: `next`, `done` and `error`.
//
// All requests take turns on one connection, so an answer has been sent before the next event is
// asked for. The client ends the process right after it has given an error: that end waits until
// the error has been sent.
"use strict";

const http = require("http");

const PREFIX = "/2018-06-01/runtime";

module.exports = (address, reseed) => {
    const [hostname, port] = address.split(":");
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    // Whoever waits for a clone to be resumed, as long as nobody has.
    let template = reseed;
    let unsent = 0;
    let ending = false;

    const exit = process.exit;
    process.exit = (code) => {
        if (code !== undefined) process.exitCode = code;
        if (unsent === 0) exit.call(process);
        ending = true;
    };

    function ask(method, path, body, headers) {
        return new Promise((resolve, reject) => {
            const options = { hostname, port, agent, method, path: PREFIX + path, headers };
            const request = http.request(options, (response) => {
                const parts = [];
                response.on("data", (part) => parts.push(part));
                response.on("error", reject);
                response.on("end", () => {
                    const text = Buffer.concat(parts).toString("utf8");
                    if (response.statusCode >= 200 && response.statusCode < 300) {
                        resolve({ text, headers: response.headers });
                    } else {
                        reject(new Error(`${method} ${path}: ${response.statusCode} ${text}`));
                    }
                });
            });
            request.on("error", reject);
            request.end(body);
        });
    }

    function post(path, text, headers) {
        const body = Buffer.from(text, "utf8");
        const all = { "Content-Type": "application/json", "Content-Length": body.length, ...headers };
        unsent += 1;
        ask("POST", path, body, all)
            .catch((error) => console.error("the runtime API does not take an answer:", error.message))
            .finally(() => {
                unsent -= 1;
                if (ending && unsent === 0) exit.call(process);
            });
    }

    return {
        async next() {
            if (template) {
                await ask("GET", "/restore/next");
                template();
                template = undefined;
            }
            const { text, headers } = await ask("GET", "/invocation/next");
            return { bodyJson: text, headers };
        },
        done(id, text) {
            post(`/invocation/${id}/response`, text);
        },
        error(id, text, cause) {
            let type;
            try {
                type = JSON.parse(text).errorType;
            } catch {
                // An error that is no error's text has no type.
            }
            post(`/invocation/${id}/error`, text, {
                "Lambda-Runtime-Function-Error-Type": /^[\x20-\x7e]+$/.test(type) ? type : "Unhandled",
                // What one header may take of the 16 KiB that all may.
                ...(cause.length < 8192 && /^[\x20-\x7e]*$/.test(cause)
                    ? { "Lambda-Runtime-Function-XRay-Error-Cause": cause }
                    : {}),
            });
        },
    };
};
