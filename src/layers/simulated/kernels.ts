/**
 * Kernels of simulated devices: functions of TypeScript, over what their arguments point to.
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import { kernelAttributes } from "../../cuda/flags.ts"
import type { KernelAttribute } from "../../cuda/flags.ts"
import { layOut, scalarReaders, scalarSizes, scalarWriters } from "../../cuda/parameters.ts"
import type {
  ArrayKind,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarName,
  ScalarValues,
  StructKind
} from "../../cuda/parameters.ts"
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import type { ScalarArgument } from "../CudaRuntime.ts"
import type { Arguments, PointerSlot } from "../shared/arguments.ts"
import type { LaunchShape } from "../shared/launches.ts"
import { KernelCode } from "../shared/modules.ts"
import type { ModuleResource } from "../shared/modules.ts"
import { memoryPart } from "./resources.ts"
import type { Storage } from "./Storage.ts"

/** The constructor of a typed array. */
export interface ArrayConstructor<A> {
  readonly BYTES_PER_ELEMENT: number
  new(buffer: ArrayBuffer, byteOffset: number, length: number): A
}

/** Memory as a kernel sees it, from where its argument points to. */
export interface SimulatedPointer {
  readonly address: number
  /** Bytes of the buffer, or the part of one, that the launch was given. */
  readonly byteLength: number
  /**
   * The memory as a typed array: by default as many whole elements as the launch was given. What does not start at a multiple
   * of the element's size is a `MisalignedAddress` fault, what ends outside the buffer an `IllegalAddress` fault. The array
   * itself is an ordinary one: what it is asked beyond its end is `undefined`.
   */
  readonly view: <A>(Type: ArrayConstructor<A>, length?: number) => A
  /** Reads one element, in elements from the pointer; one outside the buffer is an `IllegalAddress` fault. */
  readonly load: <Name extends ScalarName>(kind: Name, index: number) => ScalarValues[Name]
  /** Writes one element; one outside the buffer is an `IllegalAddress` fault. */
  readonly store: <Name extends ScalarName>(kind: Name, index: number, value: ScalarArgument<Name>) => void
}

/** What a kernel finds in place of a parameter. */
export type KernelValue<Kind extends ParameterKind = ParameterKind> = Kind extends ScalarKind<infer Name>
  ? ScalarValues[Name]
  : Kind extends PointerKind<infer Nullable> ? SimulatedPointer | (Nullable extends false ? never : null)
  : Kind extends StructKind<infer Fields> ? { readonly [Name in keyof Fields]: KernelValue<Fields[Name]> }
  : Kind extends ArrayKind<infer Element> ? ReadonlyArray<KernelValue<Element>>
  : never

/** A size in three dimensions. */
export interface Size {
  readonly x: number
  readonly y: number
  readonly z: number
}

/** A launch of a kernel. */
export interface SimulatedLaunch<Parameters extends ReadonlyArray<ParameterKind> = ReadonlyArray<ParameterKind>> {
  readonly args: { readonly [Index in keyof Parameters]: KernelValue<Parameters[Index]> }
  readonly grid: Size
  readonly block: Size
  /** Blocks of each cluster; 1 without clusters. */
  readonly cluster: Size
  readonly sharedBytes: number
  readonly device: number
  /** A global variable of the kernel's module; a `NotFound` one is a `LaunchFailed` fault. */
  readonly global: (name: string) => SimulatedPointer
  /** Ends the kernel, and as on a device the contexts of the runtime, with a status that does. */
  readonly fault: (status: StatusTag) => never
  /** Ends the kernel with an `Assert` fault unless the condition holds. */
  readonly assert: (condition: boolean) => void
}

/** A kernel of simulated devices. */
export interface SimulatedKernel<Parameters extends ReadonlyArray<ParameterKind> = ReadonlyArray<ParameterKind>> {
  readonly parameters: Parameters
  /** Virtual time that a launch takes; 5 µs by default, infinite for one that hangs. */
  readonly cost?: Duration.Input | ((launch: SimulatedLaunch) => Duration.Input) | undefined
  /** Answers that differ from those of a kernel of 1024 threads at most and 32 registers. */
  readonly attributes?: { readonly [A in KernelAttribute]?: number } | undefined
  /** What it does, at its end: for the whole grid at once. When it throws, it ends in a `LaunchFailed` fault. */
  run(launch: SimulatedLaunch<Parameters>): void
}

/** Thrown by a kernel that ends in a fault. */
export class KernelFault extends Error {
  readonly status: number
  constructor(tag: StatusTag) {
    super(`the kernel ends in ${tag}`)
    this.status = Object.hasOwn(statuses, tag) && statuses[tag].isSticky
      ? statuses[tag].code
      : statuses.LaunchFailed.code
  }
}

/** Whole nanoseconds, or infinite; nothing for what is no duration from 0. */
export const nanoseconds = (input: Duration.Input): number | undefined => {
  const duration = Option.getOrUndefined(Duration.fromInput(input))
  if (duration === undefined || Duration.isNegative(duration)) return undefined
  return Duration.isFinite(duration) ? Number(Duration.toNanosUnsafe(duration)) : Infinity
}

const usualCost = 5000

/** Nanoseconds that a launch takes. Throws for a cost that is no duration. */
export const costOf = ({ cost }: SimulatedKernel, launch: SimulatedLaunch): number => {
  const nanos = cost === undefined ? usualCost : nanoseconds(typeof cost === "function" ? cost(launch) : cost)
  if (nanos === undefined) throw new RangeError("the cost of a simulated kernel is a duration from 0")
  return nanos
}

/** A kernel as the simulated driver knows it. */
export class SimulatedCode extends KernelCode {
  readonly kernel: SimulatedKernel
  readonly #set = new Map<string, number>()

  constructor(module: ModuleResource, handle: number, name: string, kernel: SimulatedKernel) {
    const { offsets } = layOut(kernel.parameters)
    super(module, handle, name, kernel.parameters.map(({ size }, index) => ({ offset: offsets[index]!, size })))
    this.kernel = kernel
  }

  attribute(attribute: KernelAttribute, device: number): number {
    return this.#set.get(`${device} ${attribute}`) ?? this.kernel.attributes?.[attribute] ?? usualAttributes[attribute]
  }

  setAttribute(attribute: KernelAttribute, value: number, device: number): void {
    this.#set.set(`${device} ${attribute}`, value)
  }
}

const absent = Object.fromEntries(Object.keys(kernelAttributes).map((name) => [name, 0])) as {
  readonly [A in KernelAttribute]: number
}

const usualAttributes: { readonly [A in KernelAttribute]: number } = {
  ...absent,
  maxThreadsPerBlock: 1024,
  numRegs: 32,
  ptxVersion: 90,
  binaryVersion: 90,
  maxDynamicSharedSizeBytes: 48 * 1024,
  preferredSharedMemoryCarveout: -1
}

/** Memory of the simulation from an offset on; no memory at all for an address that is nowhere. */
export class Pointer implements SimulatedPointer {
  readonly address: number
  readonly byteLength: number
  readonly #storage: Storage | undefined
  readonly #offset: number

  constructor(storage: Storage | undefined, offset: number, byteLength: number, address: number) {
    this.#storage = storage
    this.#offset = offset
    this.byteLength = byteLength
    this.address = address
  }

  readonly view = <A>(Type: ArrayConstructor<A>, length = Math.floor(this.byteLength / Type.BYTES_PER_ELEMENT)): A => {
    const bytes = this.#reach(0, length * Type.BYTES_PER_ELEMENT, Type.BYTES_PER_ELEMENT)
    return new Type(bytes.buffer, bytes.byteOffset + this.#offset, length)
  }

  readonly load = <Name extends ScalarName>(kind: Name, index: number): ScalarValues[Name] => {
    const { at, view } = this.#element(kind, index)
    return scalarReaders[kind](view, at)
  }

  readonly store = <Name extends ScalarName>(kind: Name, index: number, value: ScalarArgument<Name>): void => {
    const { at, view } = this.#element(kind, index)
    if (!scalarWriters[kind](view, at)(value)) throw new TypeError(`${String(value)} is no ${kind}`)
  }

  #element(kind: ScalarName, index: number): { readonly view: DataView; readonly at: number } {
    const size = scalarSizes[kind]
    const bytes = this.#reach(index * size, size, size)
    return { view: new DataView(bytes.buffer), at: bytes.byteOffset + this.#offset + index * size }
  }

  /** The whole memory, once a part of it is known to be there and aligned. */
  #reach(from: number, byteLength: number, align: number): Uint8Array<ArrayBuffer> {
    const start = this.#offset + from
    const storage = this.#storage
    if (!(storage !== undefined && start >= 0 && start + byteLength <= storage.byteLength)) {
      throw new KernelFault("IllegalAddress")
    }
    if ((this.address + from) % align !== 0) throw new KernelFault("MisalignedAddress")
    return storage.touch()
  }
}

/** What is at an address that no buffer was given for. */
export type Resolve = (address: number) => Pointer

/** The arguments that are packed now, as the kernel is to find them. */
export const decodeAll = (
  kinds: ReadonlyArray<ParameterKind>,
  { offsets, pointers, view }: Arguments,
  resolve: Resolve
): ReadonlyArray<KernelValue> => {
  const slots = pointers.values()
  const decode = (kind: ParameterKind, offset: number): KernelValue => {
    switch (kind.kind) {
      case "pointer":
        return decodePointer(kind, slots.next().value, Number(view.getBigUint64(offset, true)), resolve)
      case "struct":
        return Object.fromEntries(
          Object.entries(kind.fields).map(([name, field]) => [name, decode(field, offset + kind.offsets[name]!)])
        )
      case "array":
        return Array.from(
          { length: kind.length },
          (_, index) => decode(kind.element, offset + index * kind.element.size)
        )
      default:
        return scalarReaders[kind.kind](view, offset)
    }
  }
  return kinds.map((kind, index) => decode(kind, offsets[index]!))
}

const decodePointer = (
  { nullable }: PointerKind,
  slot: PointerSlot | undefined,
  address: number,
  resolve: Resolve
): SimulatedPointer | null => {
  if (slot?.memory !== undefined) return new Pointer(memoryPart(slot.memory), slot.offset, slot.byteLength, address)
  return address === 0 && nullable ? null : resolve(address)
}

/** A launch as the kernel is told of it. */
export const launchOf = (
  args: ReadonlyArray<KernelValue>,
  shape: LaunchShape,
  device: number,
  global: (name: string) => SimulatedPointer
): SimulatedLaunch => ({
  args,
  grid: { x: shape.gridX, y: shape.gridY, z: shape.gridZ },
  block: { x: shape.blockX, y: shape.blockY, z: shape.blockZ },
  cluster: { x: shape.clusterX, y: shape.clusterY, z: shape.clusterZ },
  sharedBytes: shape.sharedBytes,
  device,
  global,
  fault: (status) => {
    throw new KernelFault(status)
  },
  assert: (condition) => {
    if (!condition) throw new KernelFault("Assert")
  }
})

/** What a multiprocessor has for blocks. */
export interface Multiprocessor {
  readonly count: number
  readonly threads: number
  readonly blocks: number
  readonly registers: number
  readonly sharedBytes: number
  readonly warp: number
}

/** Shared memory that a block takes besides its own. */
const reservedShared = 1024

/** How many blocks of a kernel run on a multiprocessor at once. */
export const activeBlocks = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  device: number,
  threads: number,
  sharedBytes: number
): number => {
  const warps = Math.ceil(threads / multiprocessor.warp) * multiprocessor.warp
  const registers = Math.max(1, code.attribute("numRegs", device)) * warps
  const shared = sharedBytes + code.attribute("sharedSizeBytes", device) + reservedShared
  return Math.floor(Math.min(
    multiprocessor.blocks,
    multiprocessor.threads / warps,
    multiprocessor.registers / registers,
    multiprocessor.sharedBytes / shared
  ))
}

/** The largest block of those that keep the most threads busy. */
export const bestBlock = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  device: number,
  sharedBytes: number,
  maxThreads: number
): { readonly block: number; readonly minGrid: number } => {
  const own = code.attribute("maxThreadsPerBlock", device)
  const most = maxThreads === 0 ? own : Math.min(own, maxThreads)
  let best = { block: most, blocks: activeBlocks(multiprocessor, code, device, most, sharedBytes) }
  for (let block = most - most % multiprocessor.warp; block > 0; block -= multiprocessor.warp) {
    const blocks = activeBlocks(multiprocessor, code, device, block, sharedBytes)
    if (blocks * block > best.blocks * best.block) best = { block, blocks }
  }
  return { block: best.block, minGrid: Math.max(1, best.blocks * multiprocessor.count) }
}

/** The most blocks of a cluster that devices promise. */
export const portableCluster = 8
