/**
 * `CUdevResource`: the multiprocessors of a device, or a part of them. Its contents are opaque but for the counts, and the driver only
 * accepts structs that it has written. No Effect here.
 *
 * @since 0.1.0
 */

/** `CU_DEV_RESOURCE_TYPE_SM`. */
export const multiprocessorResource = 1

/** `CU_GREEN_CTX_DEFAULT_STREAM`, which the driver requires. */
export const greenContextFlags = 1

/** The size of the struct, in bytes. */
export const resourceSize = 144

/** Byte offsets of the type, and of `sm.smCount` and `sm.minSmPartitionSize`, which drivers before CUDA 13.0 leave 0. */
const at = { type: 0, count: 96, least: 100 } as const

/** Memory for the driver to write a number of structs to. */
export const resources = (count: number): Uint8Array<ArrayBuffer> => new Uint8Array(count * resourceSize)

/** One of several structs. */
export const resourceAt = (structs: Uint8Array<ArrayBuffer>, index: number): Uint8Array<ArrayBuffer> =>
  structs.subarray(index * resourceSize, (index + 1) * resourceSize)

const read = (struct: Uint8Array<ArrayBuffer>, offset: number): number =>
  new DataView(struct.buffer, struct.byteOffset).getUint32(offset, true)

/** The multiprocessors of a struct; 0 if the driver left it empty. */
export const multiprocessorsOf = (struct: Uint8Array<ArrayBuffer>): number =>
  read(struct, at.type) === multiprocessorResource ? read(struct, at.count) : 0

/** The fewest multiprocessors that a part can have, if the driver says so. */
export const leastMultiprocessors = (struct: Uint8Array<ArrayBuffer>): number => Math.max(1, read(struct, at.least))

/** Several structs, one after another. */
export const joinResources = (structs: ReadonlyArray<Uint8Array<ArrayBuffer>>): Uint8Array<ArrayBuffer> => {
  const joined = resources(structs.length)
  for (const [index, struct] of structs.entries()) joined.set(struct, index * resourceSize)
  return joined
}
