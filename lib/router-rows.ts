import { f32Source } from './adapter-tensors.js';
import type { TensorSource } from './descriptors.js';
import { toFloat32 } from './formats/float-types.js';

/** A copy of a router tensor with its rows replaced; `edit` gets the rows [n][width] and returns the new ones. */
function editRows(tensor: TensorSource, edit: (rows: Float32Array[]) => Float32Array[]): TensorSource {
  const values = toFloat32(tensor.dtype, tensor.data as Uint8Array);
  const width = tensor.shape.length === 2 ? (tensor.shape[1] as number) : 1;
  const rows = edit(
    Array.from({ length: values.length / width }, (_, row) => values.slice(row * width, (row + 1) * width)),
  );
  const joined = new Float32Array(rows.length * width);
  for (const [row, part] of rows.entries()) joined.set(part, row * width);
  return f32Source(tensor.name, tensor.shape.length === 2 ? [rows.length, width] : [rows.length], joined);
}

const isGroup = (name: string) => name.includes('.group.');
const isExpert = (name: string) => name.includes('.expert.');

/** Zero rows for a new expert at the end of group `group`; a new last group gets a zero row too. */
export function addRouterRows(router: TensorSource[], sizes: number[], group: number): TensorSource[] {
  const at = sizes.slice(0, group + 1).reduce((sum, size) => sum + size, 0);
  const insert = (position: number) => (rows: Float32Array[]) =>
    rows.toSpliced(position, 0, new Float32Array(rows[0]?.length ?? 1));
  return router.map((tensor) => {
    if (isExpert(tensor.name)) return editRows(tensor, insert(at));
    return isGroup(tensor.name) && group === sizes.length ? editRows(tensor, insert(group)) : tensor;
  });
}

/** Without the rows of expert `expert`; a group that loses its last expert loses its row too. */
export function dropRouterRows(router: TensorSource[], sizes: number[], expert: number): TensorSource[] {
  let group = 0;
  for (let first = 0; expert >= first + (sizes[group] as number); group++) first += sizes[group] as number;
  const drop = (position: number) => (rows: Float32Array[]) => rows.toSpliced(position, 1);
  return router.map((tensor) => {
    if (isExpert(tensor.name)) return editRows(tensor, drop(expert));
    return isGroup(tensor.name) && sizes[group] === 1 ? editRows(tensor, drop(group)) : tensor;
  });
}
