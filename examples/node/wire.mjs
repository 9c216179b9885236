// What travels between a client and `confide serve`, of `he` step by step: docs/protocols/he-clients.md.

import { createHash, createHmac, hkdfSync, randomBytes, timingSafeEqual } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";

const sha256 = (bytes) => createHash("sha256").update(bytes).digest();
const hex = (bytes) => Buffer.from(bytes).toString("hex");

/** Return an answer's body. Throws with the server's reason if it refused. */
export async function exchange(url, options = {}) {
  const response = await fetch(url, options);
  const body = new Uint8Array(await response.arrayBuffer());
  if (!response.ok) throw new Error(`${response.status}: ${Buffer.from(body)}`);
  return { body, headers: response.headers };
}

/** Return what the server publishes of a model: the plan, the keys it needs, and the hashes that bind messages to it. */
export async function fetchKit(server, model) {
  const url = `${server}/v2/models/${model}/versions/he`;
  const { body } = await exchange(`${url}/kit`);
  const kit = decode(body).kit; // bytes of their own: what messages are bound to
  const { format, plan, needs } = decode(kit, { useBigInt64: true });
  if (format !== 2) throw new Error("Expected a kit of format 2");
  return { url, pin: hex(sha256(body)), hash: sha256(kit), plan, needs };
}

/** Upload public keys, SEAL's own bytes; return what questions take of them. */
export async function upload(kit, keys, days = 1) {
  const created = Math.floor(Date.now() / 1000);
  const authentication = randomBytes(32); // shared with the server: it ties questions and replies to each other
  const body = encode({
    kit: kit.hash,
    dates: { created, expires: created + 86400 * days },
    authentication,
    keys: { nonce: randomBytes(16), ...keys },
    form: "seal",
  });
  const keyId = hex(sha256(body));
  const answer = await exchange(`${kit.url}/keys`, { method: "POST", body });
  if (decode(answer.body).key_id !== keyId) throw new Error("Expected the server to name the keys that were sent");
  return { keyId, authentication };
}

/** Ask with fresh ciphertexts, SEAL's own bytes; return exponents and the reply's ciphertexts. */
export async function ask(kit, enrolled, rows, ciphertexts) {
  const { keyId, authentication } = enrolled;
  const query = encode({ ciphertexts, form: "seal" });
  const nonce = randomBytes(16);
  const count = Buffer.alloc(8);
  count.writeBigUInt64LE(BigInt(rows));
  const key = (direction) => derived(authentication, [`confide he ${direction} v1`, kit.hash, keyId]);
  const tag = mac(key("query"), nonce, count, sha256(query));
  const sealed = await infer(kit, keyId, encode({ key_id: keyId, rows, nonce, body: query, tag }));
  const reply = decode(sealed);
  const expected = mac(key("reply"), tag, sha256(reply.body));
  if (reply.tag.length !== 32 || !timingSafeEqual(expected, reply.tag)) throw new Error("Expected the reply to this question");
  const { exponents, ciphertexts: answers } = decode(reply.body);
  const view = new DataView(exponents.buffer, exponents.byteOffset, exponents.byteLength);
  const powers = Array.from({ length: exponents.byteLength / 2 }, (_, i) => view.getInt16(2 * i, true));
  return { powers, answers };
}

function mac(key, ...parts) {
  const made = createHmac("sha256", key);
  for (const part of parts) made.update(part);
  return made.digest();
}

/** Return parts as one: each goes with its length before it. */
export function label(parts) {
  const pieces = parts.flatMap((part) => {
    const bytes = Buffer.from(part);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    return [length, bytes];
  });
  return Buffer.concat(pieces);
}

/** Return 32 bytes by HKDF-SHA256. */
function derived(secret, parts) {
  return new Uint8Array(hkdfSync("sha256", secret, new Uint8Array(0), label(parts), 32));
}

/** Put a message into a request of the Open Inference Protocol with binary tensors; return the message in its answer. */
export async function infer(kit, keyId, message) {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(message.length);
  const size = { binary_data_size: message.length + 4 };
  const head = Buffer.from(
    JSON.stringify({
      inputs: [{ name: "query", shape: [1], datatype: "BYTES", parameters: size }],
      outputs: [{ name: "reply", parameters: { binary_data: true } }],
      parameters: { kit_sha256: kit.pin, key_id: keyId },
    }),
  );
  const { body, headers } = await exchange(`${kit.url}/infer`, {
    method: "POST",
    body: Buffer.concat([head, length, message]),
    headers: { "inference-header-content-length": String(head.length) },
  });
  return body.subarray(Number(headers.get("inference-header-content-length")) + 4);
}
