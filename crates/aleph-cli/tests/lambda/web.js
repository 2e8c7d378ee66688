// A function behind a URL that streams: it never ends within its time where its path says so.

exports.handler = awslambda.streamifyResponse(async (event, out) => {
    const prelude = { statusCode: 207, headers: { "x-own": "1" }, cookies: ["a=1", "b=2"] };
    const to = awslambda.HttpResponseStream.from(out, prelude);
    to.write(`first of ${event.requestContext.http.method} ${event.rawPath}\n`);
    if (event.rawPath === "/hang") await new Promise(() => setInterval(() => {}, 1000));
    to.write("second\n");
    to.end();
});
