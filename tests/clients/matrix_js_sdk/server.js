// The built server as a child process: its own folder, database and port, started, stopped, killed and started again.
//
//   SWIFTCHAT_BINARY           the program
//   SWIFTCHAT_CLIENTS_DATABASE "sqlite" (the default) or "postgres", which needs SWIFTCHAT_TEST_POSTGRES
//   SWIFTCHAT_TEST_LOGS        a folder that keeps the log of the server; not set: it goes with the data

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, openSync, closeSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const START_MS_MAX = 30_000;
const STOP_MS_MAX = 20_000;

export class Server {
    static async start() {
        const server = new Server();
        server.folder = mkdtempSync(join(tmpdir(), "swiftchat-js-"));
        server.logPath = join(process.env.SWIFTCHAT_TEST_LOGS ?? server.folder, `${basename(server.folder)}.log`);
        server.port = await freePort();
        server.url = `http://127.0.0.1:${server.port}`;
        writeFileSync(join(server.folder, "config.toml"), server.#configuration());
        try {
            await server.start();
        } catch (error) {
            await server.discard().catch(() => {});
            throw error;
        }
        return server;
    }

    #configuration() {
        let database = "sqlite:swiftchat.db";
        if (process.env.SWIFTCHAT_CLIENTS_DATABASE === "postgres") {
            this.databaseName = `clients_${randomBytes(6).toString("hex")}`;
            this.#sql(`CREATE DATABASE ${this.databaseName}`);
            database = process.env.SWIFTCHAT_TEST_POSTGRES.replace(/\/[^/]*$/, `/${this.databaseName}`);
        }
        return `
[server]
data_folder = "${this.folder}/data"
[[listeners]]
address = "127.0.0.1:${this.port}"
[storage]
database = "${database}"
[accounts]
registration = "open"
[unsafe]
cheap_password_hashing = true
rate_limits_off = true
`;
    }

    #sql(statement) {
        execFileSync("psql", ["--no-psqlrc", "-qc", statement, process.env.SWIFTCHAT_TEST_POSTGRES], { stdio: "pipe" });
    }

    // Starts the server and waits until it answers.
    async start() {
        const log = openSync(this.logPath, "a");
        this.process = spawn(process.env.SWIFTCHAT_BINARY, ["--config", join(this.folder, "config.toml")], {
            cwd: this.folder,
            stdio: ["ignore", log, log],
        });
        closeSync(log);
        const deadline = Date.now() + START_MS_MAX;
        while (!(await this.#answers())) {
            if (this.process.exitCode !== null || Date.now() > deadline) {
                assert.fail(`the server did not start:\n${readFileSync(this.logPath, "utf8").slice(-4000)}`);
            }
            await sleep(20);
        }
    }

    async #answers() {
        try {
            return (await fetch(`${this.url}/_matrix/client/versions`)).ok;
        } catch {
            return false;
        }
    }

    // Ends the server in order, as a service manager does.
    async stop() {
        const [code] = await this.#ended("SIGTERM");
        assert.equal(code, 0, `the server ended with ${code}:\n${readFileSync(this.logPath, "utf8").slice(-4000)}`);
    }

    // Ends the server as a crash does: it has no time for anything.
    async kill() {
        await this.#ended("SIGKILL");
    }

    async #ended(signal) {
        if (this.process.exitCode !== null || this.process.signalCode !== null) return [this.process.exitCode];
        const ended = once(this.process, "exit", { signal: AbortSignal.timeout(STOP_MS_MAX) });
        this.process.kill(signal);
        return ended;
    }

    // Ends the server and takes its data away.
    async discard() {
        try {
            await this.stop();
        } finally {
            await this.kill();
            if (this.databaseName) this.#sql(`DROP DATABASE ${this.databaseName} WITH (FORCE)`);
            rmSync(this.folder, { recursive: true, force: true });
        }
    }
}

function freePort() {
    return new Promise((resolve, reject) => {
        const probe = createServer();
        probe.once("error", reject);
        probe.listen(0, "127.0.0.1", () => {
            const { port } = probe.address();
            probe.close(() => resolve(port));
        });
    });
}
