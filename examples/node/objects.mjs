// SEAL's objects through node-seal: parameters, keys, plaintexts. What node-seal has no call for (a polynomial's
// coefficients, complex slots) is done on the bytes of a plaintext:
//
//     header 16 bytes, id of the parameters 32, count 8, scale 8, header 16, count 8, then 64-bit words
//
// A header is magic (2 bytes), size (1), major and minor version, compression, 2 reserved, and the length of it all (8).

import initialise from "node-seal";

export const seal = await initialise();
const NONE = seal.ComprModeType.none; // the server takes nothing that is compressed
const COUNT_AT = 48;
const SCALE_AT = 56;
const INNER_AT = 64;
const WORDS_AT = 88;

export const bytesOf = (object) => object.saveToArray(NONE);

export function contextOf({ scheme, degree, primes, plain_modulus }) {
  const parameters = new seal.EncryptionParameters(seal.SchemeType[scheme]);
  parameters.setPolyModulusDegree(degree);
  const moduli = new seal.VectorModulus();
  for (const prime of primes) moduli.push_back(new seal.Modulus(BigInt(prime)));
  parameters.setCoeffModulus(moduli);
  if (scheme === "bfv") parameters.setPlainModulus(new seal.Modulus(BigInt(plain_modulus)));
  const context = new seal.SEALContext(parameters, true, seal.SecLevelType.tc128); // less than 128 bits is refused
  if (!context.parametersSet()) throw new Error("Expected parameters that SEAL takes");
  return context;
}

/** Return the public keys that a plan needs, seeded: half the bytes. A step of 0 is the conjugation. */
export function publicKeys(maker, { encryption, relinearisation, steps }) {
  const none = new Uint8Array(0);
  return {
    encryption: encryption ? bytesOf(maker.createPublicKeySerializable()) : none,
    relinearisation: relinearisation ? bytesOf(maker.createRelinKeysSerializable()) : none,
    rotation: steps.length ? bytesOf(maker.createGaloisKeysSerializableWithSteps(Int32Array.from(steps))) : none,
  };
}

/** Return the BFV plaintext with these coefficients, a BigUint64Array. */
export function polynomial(context, coefficients) {
  const bytes = new Uint8Array(WORDS_AT + 8 * coefficients.length);
  const view = new DataView(bytes.buffer);
  const count = BigInt(coefficients.length);
  for (const at of [0, INNER_AT]) {
    bytes.set(bytesOf(new seal.Plaintext()).subarray(0, 8), at); // as this version of SEAL writes it
    view.setBigUint64(at + 8, BigInt(bytes.length - at), true);
  }
  view.setBigUint64(COUNT_AT, count, true);
  view.setFloat64(SCALE_AT, 1, true);
  view.setBigUint64(WORDS_AT - 8, count, true);
  coefficients.forEach((coefficient, i) => view.setBigUint64(WORDS_AT + 8 * i, coefficient, true));
  return loaded(new seal.Plaintext(), context, bytes);
}

/** Return the coefficients of a BFV plaintext. SEAL leaves zeros at the end out. */
export function coefficients(plain, degree) {
  const found = new BigUint64Array(degree);
  words(bytesOf(plain)).forEach((word, i) => (found[i] = word));
  return found;
}

export function ciphertext(context, bytes) {
  return loaded(new seal.Ciphertext(), context, Uint8Array.from(bytes));
}

function loaded(object, context, bytes) {
  object.loadFromArray(context, bytes);
  return object;
}

const words = (bytes) => new BigUint64Array(Uint8Array.from(bytes.subarray(WORDS_AT)).buffer);

// --- complex slots ---------------------------------------------------------------------------------------------------

/**
 * Return the CKKS plaintext with slots real + i * imaginary; imaginary may be undefined.
 *
 * In slot j the monomial X^(N/2) is i for even j and -i for odd j, so it turns the encoding of (-1)^j b_j into that of
 * i b_j. The words of an encoding are values at powers of psi, the smallest primitive 2N-th root of unity modulo each
 * prime, in bit-reversed order: in the first half of them X^(N/2) is psi^(N/2), in the second half minus that.
 */
export function encoded(context, encoder, primes, scale, real, imaginary) {
  const plain = new seal.Plaintext();
  encoder.encode(real, scale, plain);
  if (!imaginary) return plain;
  const turned = new seal.Plaintext();
  encoder.encode(imaginary.map((value, j) => (j % 2 ? -value : value)), scale, turned);
  const bytes = Uint8Array.from(bytesOf(plain));
  const view = new DataView(bytes.buffer);
  const [a, b] = [words(bytes), words(bytesOf(turned))];
  const degree = a.length / primes.length;
  primes.forEach((prime, place) => {
    const unit = power(smallestRoot(prime, degree), BigInt(degree) / 2n, prime);
    for (let i = 0; i < degree; i++) {
      const at = place * degree + i;
      const sum = (a[at] + b[at] * (2 * i < degree ? unit : prime - unit)) % prime;
      view.setBigUint64(WORDS_AT + 8 * at, sum, true);
    }
  });
  return loaded(new seal.Plaintext(), context, bytes);
}

// --- replies ---------------------------------------------------------------------------------------------------------

/**
 * Return the first `period` slots of what a reply under CKKS shows: real parts, averaged over the copies.
 *
 * What a reply shows does not change under the automorphisms X -> X^±3^(k · period); the rest of it is random. Word i of
 * a plaintext is its value at psi^e, e = 2 bitrev(i) + 1, slot t the one at e = 3^t: so summed up are the words whose e
 * is ±3^t, t of one remainder modulo the period. Divided by the number of copies that is twice the average.
 */
export function shown(context, encoder, plain, primes, degree, period) {
  const bytes = Uint8Array.from(bytesOf(plain));
  const view = new DataView(bytes.buffer);
  const before = words(bytes);
  const orbit = orbits(degree, period);
  primes.slice(0, before.length / degree).forEach((prime, place) => {
    const copies = BigInt(degree / 2 / period);
    const sums = new Array(period).fill(0n);
    for (let i = 0; i < degree; i++) sums[orbit[i]] += before[place * degree + i];
    const means = sums.map((sum) => ((sum % prime) * power(copies, prime - 2n, prime)) % prime);
    for (let i = 0; i < degree; i++) view.setBigUint64(WORDS_AT + 8 * (place * degree + i), means[orbit[i]], true);
  });
  view.setFloat64(SCALE_AT, 2 * view.getFloat64(SCALE_AT, true), true);
  return encoder.decodeFloat64(loaded(new seal.Plaintext(), context, bytes)).slice(0, period);
}

/** Return for each word of a plaintext the remainder of its slot, or of the slot that it is the conjugate of. */
function orbits(degree, period) {
  const bits = Math.log2(degree);
  const found = new Int32Array(degree);
  for (let slot = 0, exponent = 1; slot < degree / 2; slot++, exponent = (exponent * 3) % (2 * degree))
    for (const one of [exponent, 2 * degree - exponent]) {
      let place = 0;
      for (let bit = 0; bit < bits; bit++) place |= (((one - 1) / 2 >> bit) & 1) << (bits - 1 - bit);
      found[place] = slot % period;
    }
  return found;
}

function power(base, exponent, prime) {
  let result = 1n;
  for (; exponent; exponent >>= 1n, base = (base * base) % prime) if (exponent & 1n) result = (result * base) % prime;
  return result;
}

const roots = new Map(); // of each prime, once

/** Return the smallest primitive 2N-th root of unity: it is an odd power of any other. */
function smallestRoot(prime, degree) {
  if (!roots.has(prime)) roots.set(prime, smallestOf(prime, degree));
  return roots.get(prime);
}

function smallestOf(prime, degree) {
  let root = 0n;
  for (let base = 2n; power(root, BigInt(degree), prime) !== prime - 1n; base++)
    root = power(base, (prime - 1n) / BigInt(2 * degree), prime);
  const square = (root * root) % prime;
  let smallest = root;
  for (let i = 1; i < degree; i++) {
    root = (root * square) % prime;
    if (root < smallest) smallest = root;
  }
  return smallest;
}
