// What an enclave shows, and what can be checked of it here: all but a hardware vendor's signature.

import { createHash, createPrivateKey, createPublicKey, verify } from "node:crypto";
import { PUBLIC_KEY_BYTES } from "./channel.mjs";

const MOST_BYTES = 1 << 20;
const FIELDS = "code_version,model_sha256,nonce,not_after,not_before,public_key,purpose,v";

/** Whoever reads this has the key of simulated hardware: SHA-256 of this text is its seed. */
const AUTHORITY = "INSECURE SIMULATED TEE - NO PROTECTION";

const hash = (name, ...parts) => parts.reduce((made, part) => made.update(part), createHash(name)).digest();

const ASK_FOR_IT = "an enclave; this is a simulation, which protects nothing: --attester simulated accepts it for a trial";
const NO_VERIFIER = "a verifier (tdx, sgx: such as @phala/dcap-qvl); this script has none and goes no further with";

/** Throw an error that names the check which failed. */
function check(name, holds, text) {
  if (!holds) throw new Error(`evidence refused (${name}): Expected ${text}`);
}

/** Throw unless evidence of this provider can be checked here and was asked for. */
export function checkProvider(provider, attester) {
  check("provider", provider === "insecure-simulated", `${NO_VERIFIER} ${provider}`);
  check("provider", attester === "simulated", ASK_FOR_IT);
}

/**
 * Return the claims of a bundle, all checked.
 *
 * wanted: { attester, nonce (bytes), model (hex, of the graph), measurement (hex, of the code), now (seconds) }
 */
export function checked(body, wanted) {
  check("form", body.length <= MOST_BYTES, `at most ${MOST_BYTES} bytes`);
  const { provider, evidence, claims: encoded } = JSON.parse(Buffer.from(body).toString());
  checkProvider(provider, wanted.attester);
  const { debug, measurement, report_data: signed } = simulated(Buffer.from(evidence, "base64"));
  check("debug", debug === false, "an enclave that is closed to its host");
  check("measurement", measurement === wanted.measurement, `code that you trust, --measurement; here is ${measurement}`);

  const bytes = Buffer.from(encoded, "base64");
  const bound = hash("sha512", "confide-attest-v1\0", bytes).toString("hex");
  check("report data", signed === bound, "report data that are the hash of the claims");
  const claims = JSON.parse(bytes.toString());
  const written = canonical(claims) === bytes.toString() && Object.keys(claims).sort().join() === FIELDS;
  check("claims", written && claims.v === 1, "claims as an enclave of version 1 writes them");
  const { purpose, not_before: begin, not_after: end, nonce, model_sha256: model, public_key: key } = claims;
  check("purpose", purpose === "predict", "a key for predictions");
  check("validity", begin <= wanted.now && wanted.now <= end, "evidence that is valid now");
  check("nonce", nonce === Buffer.from(wanted.nonce).toString("hex"), "evidence for the nonce that was sent");
  check("model", model === wanted.model, `the model that you mean, --model-sha256; here is ${model}`);
  check("key", key.length === 2 * PUBLIC_KEY_BYTES && /^[0-9a-f]*$/.test(key), "a public key");
  return { ...claims, publicKey: Buffer.from(key, "hex") };
}

/** Return a simulated report. Its signature is by the key that everybody has: it shows that the format is right, no more. */
function simulated(evidence) {
  const report = JSON.parse(evidence.toString());
  check("signature", report.authority === AUTHORITY, "simulated evidence");
  const head = Buffer.from("302e020100300506032b657004220420", "hex"); // PKCS #8 of an Ed25519 seed
  const key = createPrivateKey({ key: Buffer.concat([head, hash("sha256", AUTHORITY)]), format: "der", type: "pkcs8" });
  const { authority, measurement, debug, report_data } = report;
  const signed = Buffer.from(JSON.stringify({ authority, measurement, debug, report_data, signature: "" }));
  const holds = verify(null, signed, createPublicKey(key), Buffer.from(report.signature, "hex"));
  check("signature", holds, "evidence whose signature holds");
  return report;
}

/** Return a flat object as JSON in the one way there is: keys sorted, no white space. */
function canonical(object) {
  return JSON.stringify(Object.fromEntries(Object.keys(object).sort().map((key) => [key, object[key]])));
}
