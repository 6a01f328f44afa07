/**
 * Kernels of simulated devices as TypeScript functions: their types, their cost, and the decoding of their arguments.
 */
import type * as Duration from "effect/Duration"
import type { KernelAttribute } from "../../cuda/flags.ts"
import { scalarReaders } from "../../cuda/parameters.ts"
import type {
  ArrayKind,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarValues,
  StructKind
} from "../../cuda/parameters.ts"
import type { StatusTag } from "../../cuda/status.ts"
import type { RecordedPointer, RecordedShape } from "../shared/graphNodes.ts"
import { nanoseconds } from "./durations.ts"
import { KernelFault, Pointer } from "./pointers.ts"
import type { SimulatedPointer, SimulatedPointerOf } from "./pointers.ts"
import { memoryPart } from "./resources.ts"

/** The value that a kernel function receives for a parameter. */
export type KernelValue<Kind extends ParameterKind = ParameterKind> = Kind extends ScalarKind<infer Name>
  ? ScalarValues[Name]
  : Kind extends PointerKind<infer Nullable, infer Element>
    ? SimulatedPointerOf<Element> | (Nullable extends false ? never : null)
  : Kind extends StructKind<infer Fields> ? { readonly [Name in keyof Fields]: KernelValue<Fields[Name]> }
  : Kind extends ArrayKind<infer Element> ? ReadonlyArray<KernelValue<Element>>
  : never

/** A size in three dimensions. */
export interface Size {
  readonly x: number
  readonly y: number
  readonly z: number
}

/** A launch, as the kernel function sees it. */
export interface SimulatedLaunch<Parameters extends ReadonlyArray<ParameterKind> = ReadonlyArray<ParameterKind>> {
  readonly args: { readonly [Index in keyof Parameters]: KernelValue<Parameters[Index]> }
  readonly grid: Size
  readonly block: Size
  /** Blocks per cluster; 1 in each dimension without clusters. */
  readonly cluster: Size
  readonly sharedBytes: number
  readonly deviceIndex: number
  /** Gets a global variable of the kernel's module. If there is none, the kernel ends in a `LaunchFailed` fault. */
  readonly global: (name: string) => SimulatedPointer
  /** Ends the kernel in a fault with a sticky status, which destroys the runtime's contexts, as on a GPU. */
  readonly fault: (status: StatusTag) => never
  /** Ends the kernel in an `Assert` fault unless the condition holds. */
  readonly assert: (condition: boolean) => void
}

/** A kernel of simulated devices. */
export interface SimulatedKernel<Parameters extends ReadonlyArray<ParameterKind> = ReadonlyArray<ParameterKind>> {
  readonly parameters: Parameters
  /**
   * The virtual time of a launch. Infinite for a kernel that hangs. Default: 5 µs. If a function throws or does not return a
   * duration, the launch fails with `LaunchFailed` and the contexts are destroyed.
   */
  readonly cost?: Duration.Input | ((launch: SimulatedLaunch) => Duration.Input) | undefined
  /** Attributes that differ from those of a kernel with at most 1024 threads per block and 32 registers. */
  readonly attributes?: { readonly [A in KernelAttribute]?: number } | undefined
  /**
   * Does the work of the whole grid, when the launch ends, synchronously. If it throws or returns a promise, the launch ends in a
   * `LaunchFailed` fault, and the failures that follow have the thrown value as their `cause`.
   */
  run(launch: SimulatedLaunch<Parameters>): void
}

export const usualCost = 5000

/** The duration of a launch in nanoseconds. Throws if the cost is not a valid duration. */
export const costOf = ({ cost }: SimulatedKernel, launch: SimulatedLaunch): number => {
  const nanos = cost === undefined ? usualCost : nanoseconds(typeof cost === "function" ? cost(launch) : cost)
  if (nanos === undefined) throw new RangeError("expected a non-negative duration")
  return nanos
}

/** The arguments of a launch in C layout. */
export interface PackedArguments {
  readonly offsets: ReadonlyArray<number>
  /** All pointers among the arguments, in order. */
  readonly pointers: ReadonlyArray<PackedPointer>
  readonly view: DataView
}

type PackedPointer = Pick<RecordedPointer, "memory" | "offset" | "byteLength">

/** Resolves an address that was passed without a buffer. `origin` names the argument. */
export type Resolve = (address: number, origin: string) => Pointer

/**
 * Decodes the packed arguments for the kernel function. Struct fields have the names in the kernel's declaration, which may differ
 * from those in the program.
 */
export const decodeAll = (
  kinds: ReadonlyArray<ParameterKind>,
  { offsets, pointers, view }: PackedArguments,
  resolve: Resolve
): ReadonlyArray<KernelValue> => {
  const slots = pointers.values()
  const decode = (kind: ParameterKind, offset: number, origin: string): KernelValue => {
    switch (kind.kind) {
      case "pointer": {
        const address = Number(view.getBigUint64(offset, true))
        return decodePointer(kind, slots.next().value, address, origin, resolve)
      }
      case "struct":
        return Object.fromEntries(
          Object.entries(kind.fields).map((
            [name, field]
          ) => [name, decode(field, offset + kind.offsets[name]!, `${origin}.${name}`)])
        )
      case "array":
        return Array.from(
          { length: kind.length },
          (_, index) => decode(kind.element, offset + index * kind.element.size, `${origin}[${index}]`)
        )
      default:
        return scalarReaders[kind.kind](view, offset)
    }
  }
  return kinds.map((kind, index) => decode(kind, offsets[index]!, `arguments[${index}]`))
}

const decodePointer = (
  { element, nullable }: PointerKind,
  slot: PackedPointer | undefined,
  address: number,
  origin: string,
  resolve: Resolve
): SimulatedPointer | null => {
  if (address === 0 && nullable && slot?.memory === undefined) return null
  const pointer = slot?.memory === undefined
    ? resolve(address, origin)
    : new Pointer(memoryPart(slot.memory), slot.offset, slot.byteLength, address, origin)
  return element === undefined ? pointer : pointer.of(element)
}

/** Describes a launch to the kernel function. */
export const launchOf = (
  args: ReadonlyArray<KernelValue>,
  shape: RecordedShape,
  deviceIndex: number,
  global: (name: string) => SimulatedPointer
): SimulatedLaunch => ({
  args,
  grid: { x: shape.gridX, y: shape.gridY, z: shape.gridZ },
  block: { x: shape.blockX, y: shape.blockY, z: shape.blockZ },
  cluster: { x: shape.clusterX, y: shape.clusterY, z: shape.clusterZ },
  sharedBytes: shape.sharedBytes,
  deviceIndex,
  global,
  fault: (status) => {
    throw new KernelFault(status)
  },
  assert: (condition) => {
    if (!condition) throw new KernelFault("Assert")
  }
})
