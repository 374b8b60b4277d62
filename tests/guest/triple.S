/* Triple-faults at once: no interrupt table, then an invalid instruction. */
	.code32
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long _start
	.text
	.globl _start
_start:
	lidt nowhere
	ud2
1:	hlt
	jmp 1b
nowhere:
	.word 0
	.long 0
