/**
 * Kernels of simulated devices as TypeScript functions: what they are given, what they cost, and their arguments as they
 * find them.
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
import type { Arguments, PointerSlot } from "../shared/arguments.ts"
import type { LaunchShape } from "../shared/launchShape.ts"
import { nanoseconds } from "./durations.ts"
import { KernelFault, Pointer } from "./pointers.ts"
import type { SimulatedPointer } from "./pointers.ts"
import { memoryPart } from "./resources.ts"

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
  readonly deviceIndex: number
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
  /**
   * Virtual time that a launch takes; 5 µs by default, infinite for one that hangs. A function that throws, or returns anything
   * but a duration, makes the launch fail with `LaunchFailed` and ends the contexts.
   */
  readonly cost?: Duration.Input | ((launch: SimulatedLaunch) => Duration.Input) | undefined
  /** Answers that differ from those of a kernel of 1024 threads at most and 32 registers. */
  readonly attributes?: { readonly [A in KernelAttribute]?: number } | undefined
  /**
   * What it does, at its end: for the whole grid at once, synchronously. When it throws, or returns a promise, it ends in a
   * `LaunchFailed` fault, and the failures that follow have what it threw as their `cause`.
   */
  run(launch: SimulatedLaunch<Parameters>): void
}

const usualCost = 5000

/** Nanoseconds that a launch takes. Throws for a cost that is no duration. */
export const costOf = ({ cost }: SimulatedKernel, launch: SimulatedLaunch): number => {
  const nanos = cost === undefined ? usualCost : nanoseconds(typeof cost === "function" ? cost(launch) : cost)
  if (nanos === undefined) throw new RangeError("expected a duration from 0")
  return nanos
}

/** What is at an address that no buffer was given for; `origin` says which argument it is. */
export type Resolve = (address: number, origin: string) => Pointer

/**
 * The arguments that are packed now, as the kernel is to find them: under the names that the kernel gives the fields of structs, since
 * those of the program mean nothing to it.
 */
export const decodeAll = (
  kinds: ReadonlyArray<ParameterKind>,
  { offsets, pointers, view }: Arguments,
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
  { nullable }: PointerKind,
  slot: PointerSlot | undefined,
  address: number,
  origin: string,
  resolve: Resolve
): SimulatedPointer | null => {
  if (slot?.memory !== undefined) {
    return new Pointer(memoryPart(slot.memory), slot.offset, slot.byteLength, address, origin)
  }
  return address === 0 && nullable ? null : resolve(address, origin)
}

/** A launch as the kernel is told of it. */
export const launchOf = (
  args: ReadonlyArray<KernelValue>,
  shape: LaunchShape,
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
