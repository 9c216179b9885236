// Rows as what SEAL encrypts, and back, by the plan in the kit: docs/protocols/he-clients.md.

const remainder = (value, modulus) => ((value % modulus) + modulus) % modulus;
const product = (numbers) => numbers.reduce((total, number) => total * number, 1);
const sigmoid = (y) => 1 / (1 + Math.exp(-y));

/** Throw unless every row has as many numbers as the model takes, all of them in the box: beyond it results wrap. */
export function checkRows(rows, features, bound) {
  if (!Array.isArray(rows) || !rows.length) throw new Error("Expected a list of rows");
  rows.forEach((row, r) => {
    if (!Array.isArray(row) || row.length !== features) throw new Error(`Expected ${features} numbers in row ${r}`);
    if (!row.every((x) => typeof x === "number" && Math.abs(x) <= bound)) // NaN is not, either
      throw new Error(`Expected numbers from ${-bound} to ${bound} in row ${r}; scale the features as the model's owner says`);
  });
}

/** Throw unless a kit asks for the keys of its plan and no others: each more tells the server what it should not have. */
export function checkNeeds({ plan, needs }) {
  const steps = new Set();
  const slots = plan.parameters.degree / 2;
  const add = (step) => steps.add((((step % slots) + slots) % slots));
  for (const { layout, conjugate } of (plan.stages ?? []).filter((stage) => stage.type === "linear")) {
    const { base, babies, giant, sums, fold, hoisted } = layout.rotations;
    const moves = [base, fold, giant[0] > 1 ? giant[1] : 0];
    babies.forEach(([count, step], axis) => {
      const most = axis < babies.length - hoisted ? Math.min(count, 2) : count;
      for (let i = 1; i < most; i++) moves.push(i * step);
    });
    for (const [count, step] of sums) for (let i = 1; i < count; i++) moves.push(i * step);
    moves.filter((step) => step).forEach(add);
    if (conjugate) add(0);
  }
  const products = (plan.stages ?? []).some((stage) => stage.type === "product");
  const same = needs.steps.length === steps.size && needs.steps.every((step) => steps.has(step));
  if (!same || needs.encryption !== plan.protected || needs.relinearisation !== products)
    throw new Error("Expected a kit that asks for the keys of its plan");
}

// --- linear models: coefficients -------------------------------------------------------------------------------------

function blocks({ degree, features, outputs }) {
  const width = Math.min(outputs, Math.floor(degree / features));
  const stride = width * features;
  return { width, stride, products: Math.ceil(outputs / width), each: Math.floor(degree / stride) };
}

/** Return polynomials, BigInt coefficients in [0, t), that hold rows of numbers in [-bound, bound]. */
export function linearInputs(plan, rows) {
  const { degree, features } = plan.blocks;
  const { stride, each } = blocks(plan.blocks);
  const t = BigInt(plan.parameters.plain_modulus);
  const polynomials = Array.from({ length: Math.ceil(rows.length / each) }, () => new BigUint64Array(degree));
  rows.forEach((row, r) => {
    for (let i = 0; i < features; i++) {
      const integer = BigInt(Math.round((row[i] / plan.fixed.input_bound) * 2 ** plan.fixed.input_bits));
      polynomials[Math.floor(r / each)][(r % each) * stride + i] = remainder(integer, t);
    }
  });
  return polynomials;
}

/** Return the outputs of `rows` rows from the decrypted polynomials of a reply. */
export function linearOutputs(plan, rows, polynomials, powers) {
  const { features, outputs } = plan.blocks;
  const { width, stride, products, each } = blocks(plan.blocks);
  const t = BigInt(plan.parameters.plain_modulus);
  const bits = plan.fixed.input_bits + plan.fixed.weight_bits;
  return Array.from({ length: rows }, (_, r) =>
    Array.from({ length: outputs }, (_, j) => {
      const polynomial = polynomials[Math.floor(r / each) * products + Math.floor(j / width)];
      const z = polynomial[(r % each) * stride + (j % width) * features + features - 1];
      const y = Number(z > t / 2n ? z - t : z) * 2 ** (powers[j] - bits);
      return plan.sigmoid ? sigmoid(y) : y;
    }),
  );
}

// --- networks: slots -------------------------------------------------------------------------------------------------

/** Return the slot of number i of a packing: i in mixed radix over the axes, each digit times its stride. */
function slotOf(packing, i) {
  let slot = 0;
  for (const [count, stride] of [...packing.axes].reverse()) {
    slot += (i % count) * stride;
    i = Math.floor(i / count);
  }
  return slot;
}

/** Return the number in each slot of a packing, -1 where there is none. */
function labels(packing, span) {
  const found = new Int32Array(span).fill(-1);
  for (let copy = 0; copy < packing.copies; copy++)
    for (let i = 0; i < packing.size; i++) found[slotOf(packing, i) + copy * packing.period] = i;
  return found;
}

/** Return the map (height, width) and the taps (inputs of one output) of a convolution. */
function sizes({ channels, image, kernel, stride, padding: [top, left, bottom, right] }) {
  const map = [
    Math.floor((image[0] + top + bottom - kernel[0]) / stride[0]) + 1,
    Math.floor((image[1] + left + right - kernel[1]) / stride[1]) + 1,
  ];
  return { map, taps: channels[0] * product(kernel) };
}

/** Return the pixel under tap (channel, ky, kx) of a convolution at a place of its output map, -1 in the padding. */
function pixel({ image, kernel, stride, padding: [top, left] }, [, columns], place, tap) {
  const y = Math.floor(place / columns) * stride[0] + (Math.floor(tap / kernel[1]) % kernel[0]) - top;
  const x = (place % columns) * stride[1] + (tap % kernel[1]) - left;
  if (y < 0 || y >= image[0] || x < 0 || x >= image[1]) return -1;
  return (Math.floor(tap / product(kernel)) * image[0] + y) * image[1] + x;
}

/** Return the slots of one row of numbers in [-bound, bound]: the real parts, and the imaginary ones where they hold some. */
export function networkInputs(plan, row) {
  const { features, packed, patches, halves, copies, shift } = plan.entry;
  const slots = plan.parameters.degree / 2;
  const span = packed.period * packed.copies;
  const room = product(packed.axes.map(([count]) => count));
  const { map, taps } = patches ? sizes(patches) : { map: [1, 1], taps: features };
  const places = product(map);
  const first = labels(packed, span);
  return Array.from({ length: halves }, (_, half) =>
    Float64Array.from({ length: slots }, (_, slot) => {
      const label = first[(slot + (Math.floor(slot / span) % copies) * shift) % span];
      const number = label + half * room;
      if (label < 0 || number >= taps * places) return 0;
      const feature = patches ? pixel(patches, map, number % places, Math.floor(number / places)) : number;
      return feature < 0 ? 0 : row[feature] / plan.input_bound;
    }),
  );
}

/** Return where outputs stand: over and over, `period` slots apart. */
export function outputsPacked(plan) {
  return plan.stages.findLast((stage) => stage.type === "linear").layout.packed;
}

/** Return the outputs in the slots that a reply shows. They carry noise that depends on the secret key: keep them. */
export function networkOutputs(plan, slots, powers) {
  const packed = outputsPacked(plan);
  return powers.map((power, i) => {
    const y = slots[slotOf(packed, i)] * 2 ** power;
    return plan.sigmoid ? sigmoid(y) : y;
  });
}
