// Asks a model of a confide server what it predicts for rows that the server does not see:
//
//     node ask.mjs http://127.0.0.1:8080 MODEL < rows.json
//
// rows.json is a list of lists of numbers, the features as the model takes them; printed are the outputs, likewise.
// Keys are made by node-seal, for this one run; nothing of confide runs here. What is printed of a network is yours alone:
// it carries noise that depends on the secret key, and who collects such values can compute the key.

import { readFileSync } from "node:fs";
import { bytesOf, ciphertext, coefficients, contextOf, encoded, polynomial, publicKeys, seal, shown } from "./objects.mjs";
import { checkNeeds, checkRows, linearInputs, linearOutputs } from "./plans.mjs";
import { networkInputs, networkOutputs, outputsPacked } from "./plans.mjs";
import { ask, fetchKit, upload } from "./wire.mjs";

const [server, model] = process.argv.slice(2);
const rows = JSON.parse(readFileSync(0, "utf8"));
const kit = await fetchKit(server, model);
const { plan } = kit;
const { degree } = plan.parameters;
const primes = plan.parameters.primes.map(BigInt);
if (plan.type !== "linear" && plan.type !== "network")
  throw new Error(`Expected a linear model or a network, got ${plan.type}`);
checkNeeds(kit);
if (plan.type === "linear") checkRows(rows, plan.blocks.features, plan.fixed.input_bound);
else checkRows(rows, plan.entry.features, plan.input_bound);

const context = contextOf(plan.parameters);
const maker = new seal.KeyGenerator(context);
const secret = maker.secretKey(); // stays here
const encryptor = new seal.Encryptor(context, maker.createPublicKey(), secret);
const decryptor = new seal.Decryptor(context, secret);

const encrypted = (plain) => bytesOf(encryptor.encryptSymmetricSerializable(plain)); // seeded: half the bytes
const decrypted = (bytes) => {
  const plain = new seal.Plaintext();
  decryptor.decrypt(ciphertext(context, bytes), plain);
  return plain;
};

const enrolled = await upload(kit, publicKeys(maker, kit.needs));
let outputs;
if (plan.type === "linear") {
  const questions = linearInputs(plan, rows).map((one) => encrypted(polynomial(context, one)));
  const { powers, answers } = await ask(kit, enrolled, rows.length, questions);
  const found = answers.map((bytes) => coefficients(decrypted(bytes), degree));
  outputs = linearOutputs(plan, rows.length, found, powers);
} else {
  const encoder = new seal.CKKSEncoder(context);
  const data = primes.slice(0, -1); // the last one is in keys only
  const encode = (row) => encoded(context, encoder, data, 2 ** plan.scale_bits, ...networkInputs(plan, row));
  const questions = rows.map((row) => encrypted(encode(row)));
  const { powers, answers } = await ask(kit, enrolled, rows.length, questions);
  const { period } = outputsPacked(plan);
  const read = (bytes) => shown(context, encoder, decrypted(bytes), data, degree, period);
  outputs = answers.map((bytes) => networkOutputs(plan, read(bytes), powers));
}
console.log(JSON.stringify(outputs));
