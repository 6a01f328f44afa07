/**
 * Libraries that a program describes, on simulated devices: nothing is loaded, because functions of the program stand in for native code.
 */
import type { LibraryBackend } from "../shared/libraries.ts"

export class SimulatedLibraries implements LibraryBackend {
  readonly load = undefined
}
