// Asks a model in an enclave (confide serve --backend tee) what it predicts, after checking what runs there:
//
//     node attested.mjs http://127.0.0.1:8080 MODEL --measurement HEX --model-sha256 HEX [--attester simulated] < rows.json
//
// rows.json is a list of lists of numbers, the features as the model takes them; printed are the outputs, likewise.
// Nothing of confide runs here. Before all checks hold, the server gets a nonce and nothing else.
//
// It checks simulated evidence, for trials. Hardware's evidence must be checked by a verifier of its vendor's
// certificates, such as @phala/dcap-qvl: call one where evidence.mjs refuses, and compare the report data that it returns.

import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { decode, encode } from "@msgpack/msgpack";
import { contextOf, seal } from "./channel.mjs";
import { checkProvider, checked } from "./evidence.mjs";
import { exchange, infer } from "./wire.mjs";

const text = { type: "string" };
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { attester: text, measurement: text, "model-sha256": text },
});
const [server, model] = positionals;
const url = `${server}/v2/models/${model}/versions/tee`;

/** Return the server's words about the model; none of them is believed. */
async function fetchKit() {
  const { body } = await exchange(`${url}/kit`);
  const { kit, features, outputs, max_rows: rows } = decode(body);
  const { provider } = decode(kit);
  return { url, pin: createHash("sha256").update(body).digest("hex"), features, outputs, rows, provider };
}

/** Return the claims of the enclave behind `kit`, all checked against what was asked for. */
async function attest(kit) {
  checkProvider(kit.provider, options.attester);
  const nonce = randomBytes(32);
  const { body } = await exchange(`${url}/keys`, { method: "POST", body: encode([nonce]) });
  const { attester, measurement, "model-sha256": modelHash } = options;
  return checked(body, { attester, measurement, model: modelHash, nonce, now: Date.now() / 1000 });
}

function checkRows(rows, kit) {
  const count = Array.isArray(rows) ? rows.length : 0;
  if (count < 1 || count > kit.rows) throw new Error(`Expected 1 to ${kit.rows} rows`);
  rows.forEach((row, i) => {
    const fits = Array.isArray(row) && row.length === kit.features && row.every(Number.isFinite);
    if (!fits) throw new Error(`Expected ${kit.features} numbers in row ${i}`);
  });
}

/** Return rows as a message: type, shape and little-endian bytes. */
function matrix(rows) {
  const bytes = Buffer.alloc(8 * rows.length * rows[0].length);
  rows.flat().forEach((value, i) => bytes.writeDoubleLE(value, 8 * i));
  return encode([["<f8", [rows.length, rows[0].length], bytes]]);
}

function rowsOf(message, count, columns) {
  const [[type, shape, bytes]] = decode(message);
  if (type !== "<f8" || shape.join() !== [count, columns].join() || bytes.length !== 8 * count * columns)
    throw new Error(`Expected ${count} rows of ${columns} outputs`);
  const view = Buffer.from(bytes);
  return Array.from({ length: count }, (_, r) =>
    Array.from({ length: columns }, (_, c) => view.readDoubleLE(8 * (r * columns + c))),
  );
}

const rows = JSON.parse(readFileSync(0, "utf8"));
const kit = await fetchKit();
checkRows(rows, kit);
const claims = await attest(kit);
const { sealed, open } = await seal(matrix(rows), claims.publicKey, contextOf("predict", claims.model_sha256, kit.pin));
const keyId = createHash("sha256").update(claims.publicKey).digest("hex");
const reply = await infer(kit, keyId, encode([keyId, rows.length, sealed]));
console.log(JSON.stringify(rowsOf(open(reply), rows.length, kit.outputs)));
