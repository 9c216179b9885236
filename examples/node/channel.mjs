// Bodies sealed to the key of an enclave, and replies that only the asker can open: HPKE in base mode with X-Wing
// (ML-KEM-768 + X25519), HKDF-SHA256 and AES-256-GCM, by @hpke/core. docs/protocols/he-clients.md has the bytes.

import { createDecipheriv, createHash, hkdfSync, randomBytes } from "node:crypto";
import { Aes256Gcm, CipherSuite, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";
import { label } from "./wire.mjs";

export const PUBLIC_KEY_BYTES = 1184 + 32;
const SECRET_BYTES = 32;
const TAG_BYTES = 16;

export const suite = () => new CipherSuite({ kem: new XWing(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });

/** Return what requests and replies are bound to beside the key: what for, which model, which kit. */
export const contextOf = (purpose, modelHash, about) => label([purpose, modelHash, about]);

/** Return the sealed body, and what opens its reply. */
export async function seal(body, publicKey, context) {
  const hpke = suite();
  const recipientPublicKey = await hpke.kem.deserializePublicKey(new Uint8Array(publicKey));
  const info = new Uint8Array(label(["confide tee request v1", context]));
  const secret = randomBytes(SECRET_BYTES); // what the reply's key is derived from
  const { enc, ct } = await hpke.seal({ recipientPublicKey, info }, new Uint8Array(Buffer.concat([secret, body])));
  const encapsulated = new Uint8Array(enc);
  const open = (reply) => openReply(reply, secret, label(["confide tee reply v1", context, createHash("sha256").update(encapsulated).digest()]));
  return { sealed: Buffer.concat([encapsulated, new Uint8Array(ct)]), open };
}

/** Return the body of a reply: its nonce, ciphertext and tag. Throws unless it was sealed for this very request. */
function openReply(reply, secret, info) {
  if (reply.length < SECRET_BYTES + TAG_BYTES) throw new Error("Expected a sealed reply");
  const key = Buffer.from(hkdfSync("sha256", secret, reply.subarray(0, SECRET_BYTES), info, 32));
  const opener = createDecipheriv("aes-256-gcm", key, new Uint8Array(12), { authTagLength: TAG_BYTES });
  opener.setAuthTag(reply.subarray(-TAG_BYTES));
  try {
    return Buffer.concat([opener.update(reply.subarray(SECRET_BYTES, -TAG_BYTES)), opener.final()]);
  } catch {
    throw new Error("Expected a reply that the enclave sealed for this request");
  }
}

