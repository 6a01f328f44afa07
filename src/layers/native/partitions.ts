/**
 * Partitions on the driver: green contexts. Streams that are made in one run their work on its multiprocessors. Events, memory and kernels
 * are those of the primary context.
 *
 * A green context is kept when its partition is released, and used again for the same multiprocessors: making one waits for an idle
 * device, and the driver does not return its memory (4 MiB on an H200) when it is destroyed.
 */
import {
  greenContextFlags,
  joinResources,
  leastMultiprocessors,
  multiprocessorResource,
  multiprocessorsOf,
  resourceAt,
  resources
} from "../../cuda/devResources.ts"
import type { OptionalDriverFunctionName } from "../../cuda/functions.ts"
import type { CUcontext, CUdevResourceDesc, CUgreenCtx } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { PartitionBackend, Share, Split } from "../shared/partitions.ts"
import { PartitionResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { NativeDevices } from "./devices.ts"
import type { Driver } from "./Driver.ts"

/** A green context, and the primary context with its multiprocessors. */
interface GreenContext {
  readonly green: CUgreenCtx
  readonly context: CUcontext
}

export class NativePartition extends PartitionResource {
  readonly green: CUgreenCtx
  constructor({ owner }: Driver, { context, green }: GreenContext, deviceIndex: number, share: Share) {
    super(owner, context, deviceIndex, share)
    this.green = green
  }
}

/** Narrows a partition. All partitions of the native runtime are native. */
export const greenOf = (partition: PartitionResource): CUgreenCtx => (partition as NativePartition).green

const names = [
  "cuDeviceGetDevResource",
  "cuDevSmResourceSplitByCount",
  "cuDevResourceGenerateDesc",
  "cuGreenCtxCreate",
  "cuGreenCtxDestroy",
  "cuCtxFromGreenCtx",
  "cuGreenCtxStreamCreate"
] as const satisfies ReadonlyArray<OptionalDriverFunctionName>

type Calls = { readonly [Name in (typeof names)[number]]: NonNullable<Driver["calls"][Name]> }

/** A split with the structs that describe its groups. All parts of a partition must be from the same call. */
interface NativeSplit extends Split {
  readonly structs: Uint8Array<ArrayBuffer>
  readonly restStruct: Uint8Array<ArrayBuffer>
}

/** The most green contexts that are kept unused. */
const mostKept = 32

export class NativePartitions implements PartitionBackend {
  split: Split = { groups: 0, groupSize: 1, rest: 0 }
  created: NativePartition | undefined
  readonly #driver: Driver
  readonly #devices: NativeDevices
  readonly #splits = new Map<number, NativeSplit>()
  readonly #kept = new Map<string, GreenContext>()
  readonly #descriptor = new Out<CUdevResourceDesc>()
  readonly #green = new Out<CUgreenCtx>()
  readonly #context = new Out<CUcontext>()

  constructor(driver: Driver, devices: NativeDevices) {
    this.#driver = driver
    this.#devices = devices
  }

  /** The functions, unless the driver lacks one. */
  get #calls(): Calls | undefined {
    const { calls } = this.#driver
    return names.every((name) => calls[name] !== undefined) ? calls as Calls : undefined
  }

  readSplit(deviceIndex: number): number {
    const calls = this.#calls
    if (calls === undefined) return this.#driver.answer("cuDeviceGetDevResource", statuses.NotSupported.code)
    const all = resources(1)
    const handle = this.#devices.handleOf(deviceIndex)
    const read = calls.cuDeviceGetDevResource(handle, all, multiprocessorResource)
    if (read !== success) return this.#driver.answer("cuDeviceGetDevResource", read)
    const room = Math.ceil(multiprocessorsOf(all) / leastMultiprocessors(all))
    const [structs, restStruct, count] = [resources(room), resources(1), Uint32Array.of(room)]
    const status = calls.cuDevSmResourceSplitByCount(structs, count, all, restStruct, 0, 1)
    if (status !== success) return this.#driver.answer("cuDevSmResourceSplitByCount", status)
    const groupSize = multiprocessorsOf(resourceAt(structs, 0))
    const split = { groups: count[0]!, groupSize, rest: multiprocessorsOf(restStruct), structs, restStruct }
    this.#splits.set(deviceIndex, split)
    this.split = split
    return success
  }

  isKept(deviceIndex: number, share: Share): boolean {
    return this.#kept.has(keyOf(deviceIndex, share))
  }

  create(deviceIndex: number, share: Share): number {
    const key = keyOf(deviceIndex, share)
    const kept = this.#kept.get(key)
    const made = kept ?? this.#make(deviceIndex, share)
    if (typeof made === "number") return made
    this.#kept.delete(key)
    this.created = new NativePartition(this.#driver, made, deviceIndex, share)
    this.#driver.device(deviceIndex).partitions.set(made.context, this.created)
    return success
  }

  #make(deviceIndex: number, { groups, hasRest }: Share): GreenContext | number {
    const calls = this.#calls!
    const { restStruct, structs } = this.#splits.get(deviceIndex)!
    const parts = groups.map((group) => resourceAt(structs, group))
    if (hasRest) parts.push(restStruct)
    const described = calls.cuDevResourceGenerateDesc(this.#descriptor.words, joinResources(parts), parts.length)
    if (described !== success) return this.#driver.answer("cuDevResourceGenerateDesc", described)
    const handle = this.#devices.handleOf(deviceIndex)
    const created = calls.cuGreenCtxCreate(this.#green.words, this.#descriptor.value, handle, greenContextFlags)
    if (created !== success) return this.#driver.answer("cuGreenCtxCreate", created)
    const green = this.#green.value
    const converted = calls.cuCtxFromGreenCtx(this.#context.words, green)
    if (converted === success) return { green, context: this.#context.value }
    this.#end(green)
    return this.#driver.answer("cuCtxFromGreenCtx", converted)
  }

  destroy(partition: PartitionResource): number {
    const { deviceIndex, handle, share } = partition
    const green = greenOf(partition)
    this.#driver.device(deviceIndex).partitions.delete(handle)
    this.#kept.set(keyOf(deviceIndex, share), { green, context: handle })
    if (this.#kept.size <= mostKept) return success
    // The one that was released first: a stream of this one may still be ending.
    const oldest = this.#kept.entries().next().value
    if (oldest === undefined) return success
    this.#kept.delete(oldest[0])
    return this.#driver.answer("cuGreenCtxDestroy", this.#calls!.cuGreenCtxDestroy(oldest[1].green))
  }

  #end(green: CUgreenCtx): void {
    this.#driver.warn("cuGreenCtxDestroy", this.#calls!.cuGreenCtxDestroy(green), green)
  }

  /** Destroys the green contexts that are kept. Call before the devices are closed. */
  close(): void {
    for (const { green } of this.#kept.values()) this.#end(green)
    this.#kept.clear()
  }
}

const keyOf = (deviceIndex: number, { groups, hasRest }: Share): string =>
  `${deviceIndex} ${groups.join(" ")}${hasRest ? " rest" : ""}`
