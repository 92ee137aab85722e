// One server for the scenarios of a file, and people who are stopped after each of them.

import { after, afterEach, before, test } from "node:test";
import { Person } from "./person.js";
import { Server } from "./server.js";

let server;
const present = [];

before(async () => {
    server = await Server.start();
});
afterEach(() => {
    for (const person of present.splice(0)) person.stop();
});
after(() => server?.discard());

// A scenario: `scenario("people talk", async ({ people, server }) => …)`, where `people("alice")` makes a person.
export function scenario(name, body) {
    test(name, { timeout: 120_000 }, () => {
        const keep = (person) => {
            present.push(person);
            return person;
        };
        const people = async (name, options) => keep(await Person.register(server, name, options));
        return body({ people, keep, server });
    });
}
